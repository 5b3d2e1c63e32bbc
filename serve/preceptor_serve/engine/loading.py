"""From a bundle's directory to an engine that has proved that it computes what the bundle says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preceptor.bundle import Bundle, load_bundle
from preceptor_serve.engine.engine import Engine
from preceptor_serve.engine.gate import require_int8
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.student import make_student


def load_engine(path: Path, options: EngineOptions) -> Engine:
    """The bundle at `path` in an engine, unprobed but for int8's ranking.

    InputError where it cannot be loaded, or its architecture or precision not computed here; ParityError where int8
    does not rank as bfloat16 does.
    """
    bundle = load_bundle(path)
    engine = make_engine(bundle, options)
    if options.precision == "int8":
        reference = make_engine(bundle, replace(options, precision="bfloat16"))
        try:
            require_int8(reference, engine, bundle_id=bundle.bundle_id)
        except BaseException:
            engine.close()
            raise
        finally:
            reference.close()
    return engine


def make_engine(bundle: Bundle, options: EngineOptions) -> Engine:
    """`bundle`'s weights in an engine. The engine keeps its own copies; the bundle can be let go."""
    limits = bundle.ranker.limits
    student = make_student(
        bundle.ranker.classifier,
        precision=options.precision,
        max_tokens=limits.max_prefix_tokens + limits.max_document_tokens,
    )
    return Engine(bundle.reader, student, options)
