"""Where the state of a rollout is kept: the key-value store of the Ray cluster, which Serve keeps its own state in.

Each state has a key of its own, written once: of two operators who change the same state, one is told so.
"""

from __future__ import annotations

from typing import Final

from ray.experimental import internal_kv

from preceptor.errors import StageFailed
from preceptor_serve.routing import Routing, routing_from

_NAMESPACE: Final = b"preceptor"
KEPT: Final = 50
"""States kept behind the latest one."""


def read_routing(app: str) -> Routing:
    """The latest state of `app`; before the first change, its own slot is live."""
    keys = _keys(app)
    if not keys:
        return Routing(live=app)
    found = internal_kv._internal_kv_get(keys[-1], namespace=_NAMESPACE)
    # Gone between the two calls: forgotten just now.
    return Routing(live=app) if found is None else routing_from(found)


def write_routing(app: str, routing: Routing) -> None:
    """Keep `routing`, whose revision follows the one it was made from; StageFailed where somebody was faster."""
    key = _prefix(app) + f"{routing.revision:010d}".encode()
    if internal_kv._internal_kv_put(key, routing.to_json().encode(), overwrite=False, namespace=_NAMESPACE):
        raise StageFailed("The rollout was changed by somebody else meanwhile. Look at its status, then try again.")
    for old in _keys(app)[:-KEPT]:
        internal_kv._internal_kv_del(old, namespace=_NAMESPACE)


def forget_routing(app: str) -> None:
    """Start over: the slot of `app` itself is live."""
    internal_kv._internal_kv_del(_prefix(app), del_by_prefix=True, namespace=_NAMESPACE)


def _keys(app: str) -> list[bytes]:
    return sorted(internal_kv._internal_kv_list(_prefix(app), namespace=_NAMESPACE))


def _prefix(app: str) -> bytes:
    return f"rollout:{app}:".encode()
