"""How long the CPU engine takes for one packed pass, in each precision, beside onnxruntime's int8 on whole pairs.

    .venv/bin/python -m bench.engine_pass --documents 8 --layers 5 --onnxruntime

One request of random tokens, without HTTP, caches or tokenising; what is timed takes turns, medians over rounds. The
limit is that of bfloat16: the operations the request needs, over the machine's rate of multiplying matrices.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.peers.arithmetic import matmul_rate, request_flops
from bench.peers.servers import export_int8
from bench.peers.student import RequestShape, make_bundle
from preceptor.bundle import load_bundle
from preceptor_serve.engine.forward import forward
from preceptor_serve.engine.packing import Piece, pack
from preceptor_serve.engine.student import make_student

VOCABULARY = range(1_000, 40_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4, help="of 160 tokens, on a prefix of 96 (default: 4)")
    parser.add_argument("--layers", type=int, default=10, help="layers of the student (default: 10)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the medians are over them (default: 7)")
    parser.add_argument("--onnxruntime", action="store_true", help="onnxruntime's int8 beside them (not in the extras)")
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    shape = RequestShape(prefix_tokens=96, document_tokens=160, num_documents=given.documents)
    root = Path(tempfile.gettempdir()) / "preceptor-serve-latency"
    bundle = make_bundle(root, num_layers=given.layers, shape=shape)
    classifier = load_bundle(bundle).ranker.classifier
    passes = engine_passes(classifier, shape)
    if given.onnxruntime:
        passes["onnxruntime int8"] = onnxruntime_pass(bundle, shape)
    limit_s = request_flops(classifier.config, shape) / matmul_rate(classifier.config)
    for name, seconds in medians(passes, rounds=given.rounds).items():
        print(
            f"{name:>17}: {seconds * 1000:.0f} ms, {shape.num_documents / seconds:.1f} documents/s, "
            f"{limit_s / seconds:.0%} of the limit"
        )


def engine_passes(classifier: Any, shape: RequestShape) -> dict[str, Callable[[], object]]:
    """A pass of our engine over one request, by precision."""
    packed = pack(
        [
            Piece(
                prefix=tokens(shape.prefix_tokens),
                documents=tuple(tokens(shape.document_tokens) for _ in range(shape.num_documents)),
            )
        ]
    )
    longest = shape.prefix_tokens + shape.document_tokens
    students = {
        precision: make_student(classifier, precision=precision, max_tokens=longest)
        for precision in ("bfloat16", "int8")
    }
    return {name: partial(forward, student, packed) for name, student in students.items()}


def onnxruntime_pass(bundle: Path, shape: RequestShape) -> Callable[[], object]:
    """The same documents as whole pairs in one batch."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(str(export_int8(bundle)), options, providers=["CPUExecutionProvider"])
    width = shape.prefix_tokens + shape.document_tokens
    ids = np.array([tokens(width) for _ in range(shape.num_documents)], dtype=np.int64)
    return lambda: session.run(None, {"ids": ids, "mask": np.ones_like(ids)})


def tokens(num: int) -> list[int]:
    """Random token ids."""
    return random.choices(VOCABULARY, k=num)


def medians(passes: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each, after one that does not count; they take turns."""
    for compute in passes.values():
        compute()
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, compute in passes.items():
            started_s = time.perf_counter()
            compute()
            taken[name].append(time.perf_counter() - started_s)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
