"""When a process of the application counts as hung, and how soon Serve learns of one that is.

Serve replaces a replica after three failed checks in a row. One that has been stopped answers none, so it is given
up within PERIOD_S + 3 * TIMEOUT_S: 18 s. One whose engine is stuck answers that it is, HANG_AFTER_S after its pass
began, and is replaced three checks later: within 40 s. Until then the edge sends what it holds to other replicas
(hedging.py).
"""

from __future__ import annotations

from typing import Any, Final

PERIOD_S: Final = 3.0
TIMEOUT_S: Final = 5.0
"""Chosen: the replica's event loop does not wait for its engine, so a check should not. Not measured."""
HANG_AFTER_S: Final = 30.0
"""Chosen, not measured: far above what one pass of `max_forward_tokens` of a small student should take."""

CHECKS: Final[dict[str, Any]] = {"health_check_period_s": PERIOD_S, "health_check_timeout_s": TIMEOUT_S}
"""Options of a deployment."""
