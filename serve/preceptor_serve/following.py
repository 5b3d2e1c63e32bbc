"""An edge that follows a rollout: it looks at its state every second, and at once where it is told to. No Ray."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from preceptor.errors import PreceptorError
from preceptor_serve.comparing import Comparisons
from preceptor_serve.routing import Routing
from preceptor_serve.scorer import AsyncScorer
from preceptor_serve.splitting import SplitScorer, Table

LOOK_S: Final = 1.0
_LOG: Final = logging.getLogger(__name__)


class Follower:
    """Keeps `split` on the latest state of the rollout of `app`, whose own scorer is `own`.

    `find` gives the scorer of another slot, KeyError where there is none; `read` the latest state of an application.
    """

    def __init__(
        self,
        split: SplitScorer,
        *,
        app: str,
        own: AsyncScorer,
        replica: str,
        find: Callable[[str], AsyncScorer],
        read: Callable[[str], Routing],
    ) -> None:
        self._split = split
        self._app = app
        self._replica = replica
        self._find = find
        self._read = read
        self._scorers: dict[str, AsyncScorer] = {app: own}
        self._followed = Routing(live=app)
        self._complained: Routing | None = None
        self._comparisons: tuple[str, Comparisons] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def start(self) -> None:
        """Follow what is there now, then look again every second."""
        self._look()
        threading.Thread(target=self._watch, name="rollout", daemon=True).start()

    def end(self) -> None:
        """Look no more; what was compared is written."""
        self._ended.set()
        with self._lock:
            self._keep_in(None)

    def catch_up(self) -> int:
        """The revision followed from now on.

        A state whose live slot is not there is not followed: what was followed before goes on answering.
        """
        with self._lock:
            routing = self._read(self._app)
            if routing != self._followed:
                try:
                    table = self._table_of(routing)
                except KeyError:
                    self._complain(routing, f"there is no application {routing.live}")
                    return self._followed.revision
                self._split.follow(table)
                self._followed = routing
                self._scorers = {slot: found for slot, found in self._scorers.items() if slot in self._known(routing)}
            return self._followed.revision

    def _table_of(self, routing: Routing) -> Table:
        live, candidate = self._scorer(routing.live), None
        if routing.candidate is not None:
            try:
                candidate = self._scorer(routing.candidate)
            except KeyError:
                self._complain(routing, f"there is no application {routing.candidate}; nothing goes to the candidate")
        keep = self._keep_in(routing.folder if routing.shadow else None)
        return Table(routing=routing, live=live, candidate=candidate, keep=None if keep is None else keep.offer)

    def _scorer(self, slot: str) -> AsyncScorer:
        if slot not in self._scorers:
            self._scorers[slot] = self._find(slot)
        return self._scorers[slot]

    def _known(self, routing: Routing) -> set[str]:
        return {self._app, *routing.slots}

    def _keep_in(self, folder: str | None) -> Comparisons | None:
        """Where comparisons go from now on; those kept before are written first."""
        if self._comparisons is not None and self._comparisons[0] == folder:
            return self._comparisons[1]
        if self._comparisons is not None:
            self._comparisons[1].close()
            self._comparisons = None
        if folder is None:
            return None
        try:
            self._comparisons = (folder, Comparisons(Path(folder), replica=self._replica))
        except PreceptorError as error:
            _LOG.error("comparisons are counted, and not kept: %s", error)
            return None
        return self._comparisons[1]

    def _complain(self, routing: Routing, what: str) -> None:
        if self._complained != routing:
            self._complained = routing
            _LOG.error("rollout, revision %d: %s", routing.revision, what)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        try:
            self.catch_up()
        except Exception as error:
            # The cluster's store may be away for a while: what was followed last goes on.
            _LOG.warning("rollout: its state cannot be read (%s)", type(error).__name__)
