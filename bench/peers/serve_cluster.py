"""A real local Serve with several replicas and edges, and its processes by what Ray says of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from preceptor.local_ray import serving_ray
from preceptor.running import free_port

Kind = Literal["scorer", "edge", "proxy", "controller"]
_NAMES = {
    "scorer": "SERVE_REPLICA::preceptor#Scorer#",
    "edge": "SERVE_REPLICA::preceptor#Edge#",
    "proxy": "SERVE_PROXY_ACTOR",
    "controller": "SERVE_CONTROLLER_ACTOR",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many processes there are, and how their engines compute."""

    num_scorers: int = 2
    num_edges: int = 2
    cache_mib: int = 0
    store_mib: int = 128


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The application at `url`, with its Ray in this process."""

    url: str
    bundle: Path
    shape: Shape
    session: Path = field(repr=False)

    def deploy(self, bundle: Path) -> None:
        """Nothing, once `bundle` is served; RuntimeError where Serve gives it up."""
        from ray import serve

        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.run(_application(bundle, self.shape), name="preceptor", route_prefix="/", logging_config=quiet)

    def pids(self, kind: Kind) -> dict[str, int]:
        """Process ids of the living actors of `kind`, by actor id."""
        import ray

        return {
            actor["ActorID"]: actor["Pid"]
            for actor in _actors(ray)
            if actor["State"] == "ALIVE" and (actor["Name"] or "").startswith(_NAMES[kind])
        }

    def is_whole(self) -> bool:
        """Whether Serve says that the application runs with all its replicas."""
        from ray import serve
        from ray.serve._private.common import ReplicaState

        found = serve.status().applications.get("preceptor")
        if found is None or found.status != "RUNNING":
            return False
        wanted = {"Scorer": self.shape.num_scorers, "Edge": self.shape.num_edges}
        states = {
            name: {
                ReplicaState(state).value: num for state, num in found.deployments[name].replica_states.items() if num
            }
            for name in wanted
        }
        return states == {name: {"RUNNING": num} for name, num in wanted.items()}

    def num_spilled(self) -> int:
        """Files that the object store has spilled."""
        return sum(1 for file in self.session.glob("ray_spilled_objects*/*") if file.is_file())


def _actors(ray: Any) -> list[dict[str, Any]]:
    # Not ray.util.state: that asks the dashboard, which does not run.
    return list(ray._private.state.actors().values())


def _application(bundle: Path, shape: Shape) -> Any:
    from preceptor_serve.app import AppArgs, build
    from preceptor_serve.engine.options import EngineOptions

    mib = shape.cache_mib
    engine = EngineOptions(threads=1, score_cache_mib=mib, prefix_cache_mib=mib, token_cache_mib=mib)
    return build(
        AppArgs(
            bundle=str(bundle.resolve()),
            engine=engine,
            num_edges=shape.num_edges,
            min_replicas=shape.num_scorers,
            max_replicas=shape.num_scorers,
            num_cpus=1,
        )
    )


@contextmanager
def serving(bundle: Path, shape: Shape) -> Iterator[Cluster]:
    """`bundle` behind a Serve of `shape`, which ends with the body."""
    # First: Serve gives its logger a level when it is loaded, and a quiet Ray another one.
    import ray
    from ray import serve

    with serving_ray(object_store_bytes=shape.store_mib * 2**20):
        port = free_port()
        node: Any = ray._private.worker._global_node
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        options = {"host": "127.0.0.1", "port": port}
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=quiet)
        session = Path(node.get_session_dir_path())
        cluster = Cluster(url=f"http://127.0.0.1:{port}", bundle=bundle, shape=shape, session=session)
        cluster.deploy(bundle)
        wait_until(cluster.is_whole, within_s=120)
        try:
            yield cluster
        finally:
            _end_stopped()
            with contextlib.suppress(Exception):
                serve.shutdown()


def _end_stopped() -> None:
    """Ends what stands still among this process's own: it would end no other way."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                process.kill()


def wait_until(holds: Any, *, within_s: float) -> float:
    """Seconds until `holds()`; TimeoutError after `within_s`."""
    started_s = time.monotonic()
    while not _safely(holds):
        if time.monotonic() - started_s > within_s:
            raise TimeoutError(f"{getattr(holds, '__name__', holds)} does not hold after {within_s:g} s")
        time.sleep(0.1)
    return time.monotonic() - started_s


def _safely(holds: Any) -> bool:
    try:
        return bool(holds())
    except Exception:
        # A controller that has just been killed answers nobody.
        return False


def corrupted(bundle: Path, target: Path) -> Path:
    """A copy of `bundle` at `target` whose weights are of the right size and mean nothing."""
    import json
    import shutil

    shutil.copytree(bundle, target)
    weights = target / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    # bfloat16 values of magnitude 2 with one mantissa bit each: finite, and nobody's weights.
    content[header:] = bytes.fromhex("20400840") * ((len(content) - header) // 4 + 1)
    weights.write_bytes(bytes(content[: weights.stat().st_size]))
    described = json.loads((target / "bundle.json").read_text())
    (target / "bundle.json").write_text(json.dumps(described | {"bundle_id": "corrupt"}))
    return target
