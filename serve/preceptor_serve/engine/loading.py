"""From a bundle's directory to an engine that has proved that it computes what the bundle says."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from preceptor.bundle import Reader, load_bundle, load_reader
from preceptor.errors import InputError
from preceptor_serve.engine.engine import Engine
from preceptor_serve.engine.gate import require_int8
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.plain import read_weights
from preceptor_serve.engine.student import pack_student
from preceptor_serve.engine.threads import on_passing_thread
from preceptor_serve.engine.weights import Weights, weights_of

_log = logging.getLogger(__name__)


def load_engine(path: Path, options: EngineOptions) -> Engine:
    """The bundle at `path` in an engine, unprobed but for int8's ranking.

    InputError where it cannot be loaded, or its architecture or precision not computed here; ParityError where int8
    does not rank as bfloat16 does. Nothing is computed on the caller's thread, see threads.py.
    """
    reader, weights = on_passing_thread(partial(load_parts, path))
    engine = make_engine(reader, weights, options)
    if options.precision == "int8":
        reference = make_engine(reader, weights, replace(options, precision="bfloat16"))
        try:
            require_int8(reference, engine, bundle_id=reader.bundle_id)
        except BaseException:
            engine.close()
            raise
        finally:
            reference.close()
    return engine


def load_parts(path: Path) -> tuple[Reader, Weights]:
    """The bundle at `path` as an engine needs it: its reader, and its weights in bfloat16.

    Read from its files where they are of the plain kind, else by transformers, which also has the last word on what is
    damaged. InputError where it cannot be loaded, UnknownArchitecture where transformers can and an engine cannot.
    """
    plain = _plain_parts(path)
    if plain is not None:
        return plain
    bundle = load_bundle(path)
    _log.info("%s: not of the plain kind, or damaged; read by transformers, whose import takes some seconds.", path)
    return bundle.reader, weights_of(bundle.ranker.classifier)


def _plain_parts(path: Path) -> tuple[Reader, Weights] | None:
    try:
        config = json.loads((path / "config.json").read_text())
        weights = read_weights(path, config)
        return None if weights is None else (load_reader(path, config), weights)
    except InputError:
        raise
    except Exception as error:  # safetensors and tokenizers raise types of their own on a damaged file.
        _log.warning("%s: its files were not read directly (%r).", path, error)
        return None


def make_engine(reader: Reader, weights: Weights, options: EngineOptions) -> Engine:
    """`weights` in an engine. It keeps its own copies; they can be let go."""
    longest = reader.max_prefix_tokens + reader.max_document_tokens
    pack = partial(pack_student, weights, precision=options.precision, max_tokens=longest)
    return Engine(reader, on_passing_thread(pack), options)
