"""The command `preceptor serve`: a bundle over HTTP on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from preceptor.cli_feedback import add_log


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of serving, and set what it runs."""
    parser.description = (
        "Serve a bundle: /v1/score, /v1/rerank, /v2/rerank, /readyz, /metrics. Binds to loopback unless told; another "
        "interface needs keys, or a gateway in front that authenticates."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle/ directory of an export stage")
    parser.add_argument("--host", default="127.0.0.1", help="interface to bind (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to bind (default: 8000)")
    parser.add_argument(
        "--ingress",
        choices=("haproxy", "python"),
        help="what takes requests in: HAProxy, sooner and with less of the cores, or Ray Serve's proxy in Python "
        "(default: haproxy on the loopback where it is installed, else python)",
    )
    guard = parser.add_mutually_exclusive_group()
    guard.add_argument("--keys", type=Path, metavar="FILE", help="answer holders of these keys only")
    guard.add_argument(
        "--behind-gateway", action="store_true", help="a gateway authenticates: answer whoever reaches the port"
    )
    parser.add_argument(
        "--replicas",
        type=int,
        default=1,
        help="scorers that share the cores: several answer more requests a second, one each sooner (default: 1)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8"),
        default="bfloat16",
        help="of the weights; int8 only where it ranks as bfloat16 does (default: bfloat16)",
    )
    add_log(parser)
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from preceptor_serve.keys import Guard, require_guarded

    # Before Ray is loaded, let alone started: what may not be is said at once.
    guard: Guard = "gateway" if arguments.behind_gateway else "keys"
    require_guarded(arguments.host, keys=arguments.keys, guard=guard)
    from preceptor_serve.ingress import choose_ingress, coming_in_by
    from preceptor_serve.served_log import log_of

    ingress = choose_ingress(arguments.ingress, host=arguments.host)
    log = log_of(arguments.log, rate=arguments.log_rate, texts=arguments.log_texts)
    from preceptor.local_ray import serving_ray
    from preceptor_serve.engine.options import EngineOptions
    from preceptor_serve.start import run_app

    engine, where = EngineOptions(precision=arguments.precision), {"host": arguments.host, "port": arguments.port}
    shape = {"engine": engine, "replicas": arguments.replicas}
    with coming_in_by(ingress), serving_ray():
        run_app(arguments.bundle.resolve(), **where, **shape, keys=arguments.keys, guard=guard, log=log)
    return 0
