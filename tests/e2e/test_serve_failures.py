"""A replica that hangs and then dies, under load, behind a real Ray Serve: what the client sees of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.peers.serve_cluster import Cluster, Shape, serving
from preceptor_serve.client import Client
from preceptor_serve.hedging import MIN_SEEN

pytestmark = pytest.mark.e2e

NUM_CALLERS = 4


@pytest.fixture(scope="module")
def cluster(local_ray: object, random_bundle: Path) -> Iterator[Cluster]:
    with serving(random_bundle, Shape(num_scorers=2, num_edges=1)) as found:
        yield found


def asked(client: Client, numbers: range) -> int:
    """How many of the requests of these numbers were answered; an error of one is raised."""

    def ask(number: int) -> int:
        return len(client.score("nurse", f"Registered nurse, case {number}.", ["Staff Nurse", "Baker"]).results)

    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        return sum(num == 2 for num in callers.map(ask, numbers))


def test_no_request_is_lost_to_a_replica_that_hangs_and_then_dies(cluster: Cluster) -> None:
    with Client(cluster.url, timeout_s=30) as client:
        assert asked(client, range(2 * MIN_SEEN)) == 2 * MIN_SEEN
        before = cluster.pids("scorer")
        assert len(before) == 2
        victim = min(before.values())
        os.kill(victim, signal.SIGSTOP)
        # Serve does not know yet: what the edge sends to the victim is answered by its sibling.
        assert asked(client, range(100, 140)) == 40
        os.kill(victim, signal.SIGKILL)
        assert asked(client, range(200, 240)) == 40
        assert victim not in cluster.pids("scorer").values()


def test_the_edge_dies_and_the_next_one_answers(cluster: Cluster) -> None:
    with Client(cluster.url, timeout_s=30, max_wait_s=20) as client:
        (edge,) = cluster.pids("edge").values()
        os.kill(edge, signal.SIGKILL)
        assert asked(client, range(300, 310)) == 10
        assert edge not in cluster.pids("edge").values()
