"""Threads of an engine's process, of which OpenMP gives each that computes a team of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def on_passing_thread(make: Callable[[], T]) -> T:
    """What `make` returns, computed on a thread that ends with it, and OpenMP's team of that thread too.

    A team outlives its work, and where all teams together have more threads than the process has cores, GNU's OpenMP
    lets every waiting thread sleep at once: a pass of two threads beside an idle team of two, on two cores, took 165 to
    190 ms instead of 130 (int8, 3 documents, 5 layers, AVX2).
    """
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as executor:
        return executor.submit(make).result()
