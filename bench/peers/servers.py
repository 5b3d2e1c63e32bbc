"""One server of the benchmark in this process, in a setting that was chosen for it, until it is interrupted.

    python -m bench.peers.servers NAME BUNDLE PORT

`ours` is the product. `vllm` is vLLM's own server, with its prefix cache. `sentence-transformers` and `onnxruntime`
stand behind Ray Serve and take the product's request; requests that wait together are computed together.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

from bench.peers.plain_text import plain_text
from bench.peers.settings import Setting, from_json
from preceptor.precision import computed_in

NAMES: Final = ("ours", "vllm", "sentence-transformers", "onnxruntime")
ANSWERS_AT: Final = {"vllm": "/classify"}
"""Paths of scoring, where it is not /v1/score."""


class Model(Protocol):
    """Logits of whole pairs."""

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Any: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--precision", default="bfloat16", help="of ours")
    parser.add_argument("--setting", type=from_json, default=Setting(), help="of a peer, as JSON")
    arguments = parser.parse_args()
    if arguments.name == "vllm":
        _become_vllm(arguments.bundle, arguments.port, arguments.setting)
    with contextlib.suppress(KeyboardInterrupt):
        if arguments.name == "ours":
            _serve_ours(arguments.bundle, arguments.port, arguments.precision, arguments.setting)
        else:
            _serve_peer(arguments.name, arguments.bundle, arguments.port, arguments.setting)


def _serve_ours(bundle: Path, port: int, precision: str, setting: Setting) -> None:
    from preceptor.cli import main as preceptor

    options = ["--precision", precision, "--replicas", str(setting.replicas)]
    sys.exit(preceptor(["serve", "--bundle", str(bundle), "--port", str(port), *options]))


def _become_vllm(bundle: Path, port: int, setting: Setting) -> None:
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(bundle)),
        *("--runner", "pooling", "--dtype", computed_in("bfloat16"), "--max-model-len", "512"),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "student"),
        *("--enable-prefix-caching", "--max-num-batched-tokens", str(setting.tokens)),
        *("--max-num-seqs", str(setting.sequences)),
        *("--enforce-eager", "--disable-uvicorn-access-log"),
    ]
    os.execve(sys.executable, command, environment)


def _serve_peer(name: str, bundle: Path, port: int, setting: Setting) -> None:
    from preceptor_serve.ingress import choose_ingress, coming_in_by

    # The product's own ingress, for all alike. Before Serve is loaded, which reads the environment then.
    with coming_in_by(choose_ingress(None, host="127.0.0.1")):
        _serve_behind(name, bundle, port, setting)


def _serve_behind(name: str, bundle: Path, port: int, setting: Setting) -> None:
    from ray import serve

    from preceptor.local_ray import ray_cluster

    with ray_cluster():
        # The replicas together compute with all cores, as with ours.
        deployment = serve.deployment(
            name="Peer", max_ongoing_requests=64, ray_actor_options={"num_cpus": 1}, num_replicas=setting.replicas
        )(_peer_class(setting))
        logging_config = {"log_level": "WARNING", "enable_access_log": False}
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=logging_config)
        serve.run(deployment.bind(name, str(bundle)), route_prefix="/", logging_config=logging_config)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        serve.shutdown()


def _peer_class(setting: Setting) -> Any:
    """The deployment's class, made where Ray is loaded."""
    from ray import serve
    from starlette.requests import Request

    from preceptor.precedence import take_precedence
    from preceptor.ranker.text import render_document, render_prefix

    class Peer:
        def __init__(self, name: str, bundle: str) -> None:
            # As in the product's engine: one thread computes, so that OpenMP has one team (preceptor_serve.engine.
            # threads), and it goes first, with those that a library starts from there.
            self._thread = ThreadPoolExecutor(1, initializer=take_precedence)
            self._model = self._thread.submit(load_model, name, Path(bundle), setting).result()

        async def __call__(self, request: Request) -> Any:
            asked = await request.json()
            prefix = render_prefix(asked["query"], asked["profile"])
            pairs = [(prefix, f"{render_document(document)}\nGrade: ") for document in asked["documents"]]
            return {"logits": await self._together(pairs)}

        @serve.batch(max_batch_size=setting.requests, batch_wait_timeout_s=0.005)
        async def _together(self, requests: list[list[tuple[str, str]]]) -> list[Any]:
            import asyncio

            pairs = [pair for asked in requests for pair in asked]
            logits = await asyncio.get_running_loop().run_in_executor(self._thread, self._model, pairs)
            answers, start = [], 0
            for asked in requests:
                answers.append(logits[start : start + len(asked)].tolist())
                start += len(asked)
            return answers

    return Peer


def load_model(name: str, bundle: Path, setting: Setting) -> Model:
    """The bundle's student in the library `name`."""
    load = _in_sentence_transformers if name == "sentence-transformers" else _in_onnxruntime
    return load(bundle, setting)


def _in_sentence_transformers(bundle: Path, setting: Setting) -> Model:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(setting.threads)
    encoder = CrossEncoder(
        str(plain_text(bundle)),
        device="cpu",
        max_length=512,
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": getattr(torch, computed_in("bfloat16"))},
    )

    def score(pairs: Sequence[tuple[str, str]]) -> Any:
        return encoder.predict(list(pairs), batch_size=setting.pairs, convert_to_numpy=True, show_progress_bar=False)

    return score


def _in_onnxruntime(bundle: Path, setting: Setting) -> Model:
    import numpy as np
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(str(export_int8(bundle)), options, providers=["CPUExecutionProvider"])

    def batch(pairs: Sequence[tuple[str, str]]) -> Any:
        texts = ["".join(pair) for pair in pairs]
        read = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="np")
        return session.run(None, {"ids": read["input_ids"], "mask": read["attention_mask"]})[0]

    def score(pairs: Sequence[tuple[str, str]]) -> Any:
        parts = [pairs[start : start + setting.pairs] for start in range(0, len(pairs), setting.pairs)]
        return np.concatenate([batch(part) for part in parts])

    return score


def export_int8(bundle: Path) -> Path:
    """The bundle's student as an ONNX file with int8 weights, made once, beside the bundle."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    target = bundle.parent / "onnx" / "int8.onnx"
    if target.is_file():
        return target
    target.parent.mkdir(exist_ok=True)
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(
        bundle, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.classifier(input_ids=ids, attention_mask=mask, use_cache=False).logits

    whole = target.with_name("float32.onnx")
    ids = torch.randint(5, 100, (2, 9))
    # The exporter that needs nothing beside onnx; the newer one wants onnxscript.
    torch.onnx.export(
        Logits(),
        (ids, torch.ones_like(ids)),
        str(whole),
        dynamo=False,
        opset_version=17,
        input_names=["ids", "mask"],
        output_names=["logits"],
        dynamic_axes={"ids": {0: "n", 1: "t"}, "mask": {0: "n", 1: "t"}, "logits": {0: "n"}},
    )
    made = target.with_name("int8.part.onnx")
    quantize_dynamic(str(whole), str(made), weight_type=QuantType.QInt8, per_channel=True)
    made.rename(target)
    return target


if __name__ == "__main__":
    main()
