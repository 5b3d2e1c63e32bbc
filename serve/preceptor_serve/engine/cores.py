"""Cores of this machine that no other replica computes on."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

# Held until the process ends: the kernel gives a lock back with its process, however that ends.
_held: list[IO[str]] = []


def claim_cores(num: int, *, folder: Path | None = None) -> tuple[int, ...]:
    """`num` cores that this process has claimed and others that ask here will not get; () where so many are not free.

    Replicas that may run anywhere are moved onto each other's cores and back; one with cores of its own keeps its
    caches. `folder` holds a lock file for each core (default: one of this user's in the temporary directory). Where
    the system cannot pin, or the folder is not this user's, nothing is claimed: a replica runs without.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    taken: list[tuple[int, IO[str]]] = []
    try:
        place = _own(folder or Path(tempfile.gettempdir()) / f"preceptor-cores-{os.getuid()}")
        for core in sorted(os.sched_getaffinity(0)):
            file: IO[str] = (place / str(core)).open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            taken.append((core, file))
            if len(taken) == num:
                _held.extend(held for _, held in taken)
                return tuple(core for core, _ in taken)
    except OSError:
        pass
    for _, file in taken:
        file.close()
    return ()


def _own(folder: Path) -> Path:
    """`folder`, made; PermissionError where another user made it, who could have put links into it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this user's")
    return folder
