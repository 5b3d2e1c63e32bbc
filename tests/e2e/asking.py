"""Members who ask an application that answers with one bundle or another, and what came back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

PAUSE_S = 0.03
DOCUMENTS = ["Staff Nurse (nights), surgical ward.", "Software engineer, remote.", "Baker, early shifts."]


def ask(session: httpx.Client, number: int = 0) -> httpx.Response:
    body = {"query": "night nurse", "profile": f"Registered nurse number {number}.", "documents": DOCUMENTS}
    return session.post("/v1/score", json=body)


def bundles(session: httpx.Client, numbers: range) -> list[str]:
    return [ask(session, number).json()["bundle_id"] for number in numbers]


@dataclass
class Load:
    """What came back of a steady load: a status and a bundle for each request, in order of their answers."""

    seen: list[tuple[int, str | None]] = field(default_factory=list)

    @property
    def failures(self) -> list[tuple[int, str | None]]:
        return [one for one in self.seen if one[0] != 200]

    @property
    def bundles(self) -> list[str | None]:
        return [bundle for _, bundle in self.seen]


@contextmanager
def steady_load(url: httpx.URL, num_threads: int = 3) -> Iterator[Load]:
    """Members who ask one request after the other while the body runs; at least one more each after it.

    They pause in between: without it they took the cores that the new replica starts on.
    """
    load, done = Load(), threading.Event()

    def member(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            last = False
            while not last:
                last = done.is_set()
                number += num_threads
                response = ask(client, number)
                load.seen.append((response.status_code, response.json().get("bundle_id")))
                done.wait(PAUSE_S)

    threads = [threading.Thread(target=member, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        done.set()
        for thread in threads:
            thread.join()
