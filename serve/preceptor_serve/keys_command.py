"""The command `preceptor keys`: makes, lists and ends the API keys of a scorer. Imports nothing until it is asked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

REQUESTS_PER_MINUTE: Final = 600
DOCUMENTS_PER_MINUTE: Final = 60_000


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the command's parts and set what each runs."""
    parser.description = "API keys of a scorer: a file of salted hashes that `preceptor serve --keys FILE` reads."
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="make a key; it is printed once and kept only as a salted hash")
    remove = commands.add_parser("remove", help="end a key; running scorers notice")
    shown = commands.add_parser("list", help="names, limits and dates")
    for command, run in ((add, _add), (remove, _remove), (shown, _list)):
        command.set_defaults(run=run)
        command.add_argument("--file", type=Path, default=Path("keys.json"), help="default: keys.json")
    for name, number in (("requests", REQUESTS_PER_MINUTE), ("documents", DOCUMENTS_PER_MINUTE)):
        about = f"{name} the key may send a minute (default: {number})"
        add.add_argument(f"--{name}-per-minute", type=int, default=number, metavar="N", help=about)
    for command in (add, remove):
        command.add_argument("name", help="who holds the key")


def _add(arguments: argparse.Namespace) -> int:
    from preceptor_serve.keys import add_key

    key = add_key(
        arguments.file,
        arguments.name,
        requests_per_minute=arguments.requests_per_minute,
        documents_per_minute=arguments.documents_per_minute,
    )
    print(f"keys: '{arguments.name}' added to {arguments.file}; the key is shown only now", file=sys.stderr)
    print(key)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from preceptor_serve.keys import remove_key

    remove_key(arguments.file, arguments.name)
    print(f"keys: '{arguments.name}' removed from {arguments.file}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from preceptor_serve.keys import read_keys

    for key in read_keys(arguments.file):
        limits = f"{key.requests_per_minute:,} requests, {key.documents_per_minute:,} documents a minute"
        print(f"{key.name}  {limits}  since {key.created}")
    return 0
