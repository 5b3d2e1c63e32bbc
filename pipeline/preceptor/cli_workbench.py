"""The command `preceptor workbench`: a local page for the policy's owner and an engineer together."""

from __future__ import annotations

import argparse
import ipaddress
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from preceptor.errors import InputError
from preceptor.recipe import Recipe

EPILOG: Final = """\
examples:
  preceptor workbench demo --root runs/demo                      then open http://127.0.0.1:8100
  preceptor workbench demo --root runs/demo --policy my_policy   decisions are written there

Decisions change the files of the policy's directory: read them with `git diff`. What each part does: docs/workbench.md
"""

RecipeOf = Callable[[argparse.Namespace], Recipe]


def add_workbench(parser: argparse.ArgumentParser, recipe_of: RecipeOf) -> None:
    """Give `parser` the options beside those of a recipe, which `recipe_of` reads, and set what it runs."""
    parser.description = (
        "Serve a page on this machine: the policy with its lint findings, agreement by dimension and slice, and the "
        "disagreements, of which each can be decided; then judge again what the decisions have touched."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8100, help="port to bind (default: 8100)")
    parser.set_defaults(run=partial(_workbench, recipe_of=recipe_of))


def _workbench(arguments: argparse.Namespace, *, recipe_of: RecipeOf) -> int:
    import uvicorn

    from preceptor.policy.sealed import sealed
    from preceptor.workbench import Session, make_workbench, recalibration_of
    from preceptor.workbench.session import open_board

    recipe = recipe_of(arguments)
    root = (arguments.root or Path("runs") / recipe.name).resolve()
    _require_one_address(arguments.host)
    session = Session(policy=recipe.policy.resolve(), root=root, version=recipe.version)
    # Whoever decides here tunes the judge, so nothing in this process opens the holdout.
    with sealed(session.policy, session.corpus):
        session.newest()
        open_board(session)
        app = make_workbench(session, recalibrate=recalibration_of(recipe, root), host=arguments.host)
        listener = _bound(arguments.host, arguments.port)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"workbench: {address}  (policy {session.policy}; Ctrl-C ends it)", flush=True)
        if not _is_loopback(arguments.host):
            print("workbench: everybody who reaches this address can decide in any name", file=sys.stderr, flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
        # Ctrl-C is how it is meant to end: what was decided is written, and a recalibration goes on where it stopped.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; InputError where it cannot."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be bound ({error}). Choose another --host or --port.") from error


def _require_one_address(host: str) -> None:
    """Nothing, or InputError for an address that stands for all: the page checks that it is called by its name."""
    try:
        wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        wildcard = not host
    if wildcard:
        raise InputError(
            f"--host {host}: the workbench has no login. Name one address of this machine, or leave it out."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
