"""A rollout's steps on a running Serve: candidates started and ended, the state changed, every edge told and asked.

A candidate is a Serve application of its own beside the live one, without a route: whether it comes up or not, nothing
of what answers is touched. A step is done once every edge says that it follows it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ReplicaState

from preceptor.bundle import describe
from preceptor.errors import StageFailed, last_line
from preceptor_serve import routing as steps
from preceptor_serve.app import AppArgs, build_scorers, scorers_of
from preceptor_serve.board import read_routing, write_routing
from preceptor_serve.bundle_check import error_in
from preceptor_serve.routing import Routing
from preceptor_serve.scorer import Identity

ASK_S: Final = 30.0
LOOK_S: Final = 0.2
# What a deployment's entry in serve.yaml may say of the scorers, and so of a candidate's.
_LIKE_THE_LIVE: Final = (
    "num_replicas",
    "max_ongoing_requests",
    "max_queued_requests",
    "autoscaling_config",
    "ray_actor_options",
    "health_check_period_s",
    "health_check_timeout_s",
    "graceful_shutdown_wait_loop_s",
    "graceful_shutdown_timeout_s",
    "logging_config",
    "placement_group_bundles",
    "placement_group_strategy",
    "max_replicas_per_node",
)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """The Ray cluster at `address`, joined while the body runs; StageFailed where there is none."""
    if ray.is_initialized():
        yield
        return
    try:
        # It says where it connects, on the error stream, that a command's one line may stand alone there.
        with contextlib.redirect_stderr(io.StringIO()):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StageFailed(f"No Ray cluster at '{address}' ({last_line(error)}). Give its --address.") from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class Running:
    """The application `app` of a running Serve; `wait_s` is how long a candidate may take to come up."""

    app: str
    wait_s: float = 300.0

    def routing(self) -> Routing:
        """The state now; StageFailed where there is no such application."""
        self._edge()
        return read_routing(self.app)

    def stage(self, bundle: Path) -> str:
        """The bundle at `bundle` as the candidate, started and probed, with no share yet."""
        slot = f"{self.app}-{describe(bundle)['bundle_id']}"
        was = self.routing()
        # Refused before anything is started.
        now = steps.staged(was, slot)
        started = self._start(bundle, slot)
        if now == was and not started:
            return f"{slot} is the candidate already, share {was.share:g}, shadow {was.shadow:g}"
        self._turn(was, now)
        if was.candidate is not None and was.candidate not in now.slots:
            serve.delete(was.candidate)
        return f"{slot} is the candidate, share 0; live is {now.live}"

    def share(self, share: float) -> str:
        """The candidate answers this share of the members."""
        now = self._step(lambda was: steps.shared(was, share))
        return f"{now.candidate} answers {now.share:g} of the members; live is {now.live}"

    def shadow(self, shadow: float, folder: str | None) -> str:
        """The candidate scores this share of the requests besides, compared in `folder` on each edge's machine."""
        now = self._step(lambda was: steps.shadowed(was, shadow, folder))
        place = f"compared in {folder}" if folder and shadow else "counted in /metrics alone" if shadow else "no more"
        return f"{now.candidate} scores {now.shadow:g} of the requests besides, {place}; live is {now.live}"

    def promote(self) -> str:
        """The candidate as the live bundle: first for everyone with the old one behind it, then alone."""
        was = self.routing()
        if was.candidate is None and was.previous is not None:
            return f"nothing to promote: {was.live} is live, {was.previous} the previous one"
        now = steps.shared(was, 1.0)
        candidate = now.candidate
        assert candidate is not None
        self._require_running(candidate)
        if now != was:
            now = self._turn(was, now)
        # An autoscaled candidate grows with what it is given; meanwhile what is too much falls back to the old one.
        want = self._num_replicas(now.live)
        _until(lambda: self._num_replicas(candidate) >= want, self.wait_s)
        have = self._num_replicas(candidate)
        now = self._turn(now, steps.promoted(now))
        return f"{now.live} is live with {have} replicas, {now.previous} had {want}; `rollback` returns to it at once"

    def rollback(self) -> str:
        """Nothing to the candidate or, where none is staged, the previous bundle live again."""
        was = self.routing()
        now = steps.rolled_back(was)
        if now == was:
            return f"nothing to roll back: all requests go to {was.live}"
        now = self._turn(was, now)
        return f"{now.live} answers every request; {now.candidate} stays staged, share 0"

    def retire(self) -> str:
        """Ends what answers nobody. The application's own scorers go on: they are live where their bundle is."""
        was = self.routing()
        now = steps.retired(was, own=self.app)
        own = self._identity(self.app)
        if was.live != self.app and own is not None and own == self._identity(was.live):
            now = replace(now, live=self.app, previous=None)
        if now != was:
            self._turn(was, now)
        ended = [slot for slot in was.slots if slot not in (*now.slots, self.app)]
        for slot in ended:
            serve.delete(slot)
        return f"ended: {', '.join(ended) or 'nothing'}; live is {now.live}"

    def status(self) -> str:
        """The state as lines: each slot's part, bundle, policy and replicas; the revision that each edge follows."""
        now = self.routing()
        followed = self._told()
        lines = [f"{'part':<10} {'bundle':<20} {'policy':<24} {'replicas':>8}  slot"]
        for part, slot in (("live", now.live), ("candidate", now.candidate), ("previous", now.previous)):
            if slot is None:
                continue
            found = self._identity(slot)
            names = ("-", "-") if found is None else (found.bundle_id, found.policy_version)
            lines.append(f"{part:<10} {names[0]:<20} {names[1]:<24} {self._num_replicas(slot):>8}  {slot}")
        behind = sum(revision != now.revision for revision in followed)
        lines.append(f"share {now.share:g}, shadow {now.shadow:g}, comparisons in {now.folder or 'no folder'}")
        lines.append(f"revision {now.revision}; {len(followed) - behind} of {len(followed)} edges follow it")
        if now.live != self.app:
            lines.append(
                f"{now.live} answers in the place of the application's own scorers. To make it theirs, deploy the "
                "application with its bundle, then: preceptor rollout retire."
            )
        return "\n".join(lines)

    def _edge(self) -> DeploymentHandle:
        try:
            return serve.get_deployment_handle("Edge", self.app)
        except (KeyError, RayServeException) as error:
            raise StageFailed(f"No Serve application '{self.app}' runs in this cluster. Start it first.") from error

    def _step(self, step: Callable[[Routing], Routing]) -> Routing:
        was = self.routing()
        now = step(was)
        return was if now == was else self._turn(was, now)

    def _turn(self, was: Routing, now: Routing) -> Routing:
        """`now` as the state that follows `was`, once every edge follows it."""
        now = replace(now, revision=was.revision + 1)
        write_routing(self.app, now)
        followed = self._told()
        if behind := sum(revision < now.revision for revision in followed):
            raise StageFailed(
                f"Revision {now.revision} is written, but {behind} of {len(followed)} edges do not follow it: is every "
                "slot there? Their logs say more; look at the status."
            )
        return now

    def _told(self) -> list[int]:
        """The revision that each edge follows, having looked."""
        try:
            return [int(revision) for revision in self._edge().broadcast("catch_up").results(timeout_s=ASK_S)]
        except (RayError, RayServeException, TimeoutError) as error:
            raise StageFailed(
                f"The edges of '{self.app}' do not answer ({type(error).__name__}). Those that run look every second "
                "by themselves; look at the status."
            ) from error

    def _start(self, bundle: Path, slot: str) -> bool:
        """Whether `slot` had to be started; StageFailed, and nothing left of it, where it does not come up."""
        if (found := _application(slot)) is not None and found.status == ApplicationStatus.RUNNING:
            return False
        args: AppArgs | None = self._edge().arguments.remote().result(timeout_s=ASK_S)
        if args is None:
            raise StageFailed(f"'{self.app}' does not say how it was built. Deploy it again with this version.")
        args = args.model_copy(update={"bundle": str(bundle.resolve())})
        like = _declared(self.app)
        scorers = scorers_of(args).options(**like).bind(args.bundle, args.engine) if like else build_scorers(args)
        target = serve.RunTarget(target=scorers, name=slot, route_prefix=None, logging_config=_QUIET)
        serve.run_many([target], wait_for_applications_running=False, wait_for_ingress_deployment_creation=False)
        done = _until(lambda: _settled(slot), self.wait_s)
        found = _application(slot)
        if done and found is not None and found.status == ApplicationStatus.RUNNING:
            return True
        said = " ".join(one.message for one in found.deployments.values()) if found is not None else ""
        serve.delete(slot)
        why = _cause(said) if done else f"not up within {self.wait_s:g} s: has the cluster room for it?"
        raise StageFailed(f"{bundle}: the candidate did not start ({why}). It is removed; what was live goes on.")

    def _require_running(self, slot: str) -> None:
        found = _application(slot)
        if found is None or found.status != ApplicationStatus.RUNNING:
            state = "gone" if found is None else found.status.value
            raise StageFailed(f"The candidate {slot} is {state}, not RUNNING. Stage it again; nothing was changed.")

    def _num_replicas(self, slot: str) -> int:
        found = _application(slot)
        if found is None or "Scorer" not in found.deployments:
            return 0
        return found.deployments["Scorer"].replica_states.get(ReplicaState.RUNNING, 0)

    def _identity(self, slot: str) -> Identity | None:
        """Which bundle answers in `slot`, None where none does."""
        with contextlib.suppress(KeyError, RayError, RayServeException, TimeoutError):
            handle = serve.get_deployment_handle("Scorer", slot)
            found: Identity = handle.identity.remote().result(timeout_s=ASK_S)
            return found
        return None


_QUIET: Final = {"log_level": "WARNING", "enable_access_log": False}


def _application(slot: str) -> ApplicationStatusOverview | None:
    return serve.status().applications.get(slot)


def _settled(slot: str) -> bool:
    found = _application(slot)
    return found is not None and found.status not in (ApplicationStatus.DEPLOYING, ApplicationStatus.NOT_STARTED)


def _until(holds: Callable[[], bool], wait_s: float) -> bool:
    """Whether `holds` came to hold within `wait_s`."""
    end_s = time.monotonic() + wait_s
    while not (held := holds()) and time.monotonic() < end_s:
        time.sleep(LOOK_S)
    return held


def _declared(app: str) -> Mapping[str, Any]:
    """What serve.yaml says of the scorers of `app` under `deployments`; nothing where it was not deployed so."""
    client = _get_global_client()
    assert client is not None
    config = (client.get_serve_details()["applications"].get(app) or {}).get("deployed_app_config") or {}
    for entry in config.get("deployments") or ():
        if entry.get("name") == "Scorer":
            return {name: entry[name] for name in _LIKE_THE_LIVE if entry.get(name) not in (None, {})}
    return {}


def _cause(message: str) -> str:
    """What a replica's message names as the error, which Serve wraps in a traceback."""
    if (said := error_in(message)) is not None:
        return ": ".join(said)[:300]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = [line for line in lines if "Error: " in line]
    return (named or lines or ["no reason given"])[-1][:300]
