"""The `prune` stage: a student with fewer neurons, heads, layers and embedding rows, as a plain checkpoint."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preceptor.contracts import PAIRS, read_table
from preceptor.errors import StageFailed
from preceptor.ranker.batches import EncodedRequest, encode, group_requests, micro_batches, pack
from preceptor.ranker.model import PackedBatch, Ranker, load_ranker
from preceptor.ranker.scoring import MAX_BATCH_TOKENS
from preceptor.ranker.text import document_token_ids, prefix_token_ids
from preceptor.recipe import PruneConfig
from preceptor.record import Record, begin, write_json
from preceptor.student.importance import choose, columns, corrected, grams, layer_changes, layer_losses, output_error
from preceptor.student.shapes import (
    Kept,
    Sizes,
    head_width,
    narrowed,
    parameters_of,
    require_prunable,
    sizes_of,
    target_sizes,
    without_layers,
)
from preceptor.student.vocabulary import smaller_tokenizer, with_vocabulary


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """One round, from 1, of a recipe's pruning."""

    prune: PruneConfig
    round: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A pruned ranker, its tokenizer, and what was removed of the one before, for a record."""

    ranker: Ranker
    tokenizer: Any
    removed: dict[str, Any]


def prune(config: PruneConfig, *, student: Record, model: Record, round: int = 1, out: Path) -> Record:
    """The record of the student in ``model/`` after `round` of the config, cut but not yet recovered.

    `student` is the distilled one, which the shares are shares of and whose training pairs measure importance; `model`
    is what is cut: the student itself, or the recovered one of the round before. ``removed.json`` names all that went,
    numbered as in `model`.
    """

    from transformers import AutoConfig

    wanted = RoundConfig(prune=config.deciding, round=round)
    inputs = {"student": student, "model": model}
    run = begin("prune", wanted, out=out, inputs=inputs, policy_version=student.policy_version)
    if run.record is not None:
        return run.record
    ranker, tokenizer = load_ranker(model.path / "model")
    require_prunable(ranker)
    pairs = read_table(student.path / "training" / "pairs", PAIRS).to_pylist()
    before = parameters_of(ranker)
    start = sizes_of(AutoConfig.from_pretrained(student.path / "model"))
    cut = cut_student(ranker, tokenizer, pairs, target_sizes(start, config, round=round), config)
    _save(cut, out)
    write_json(out / "removed.json", cut.removed)
    listed = ("layers", "layer_scores", "groups", "heads")
    return run.finish(
        num_rows_in=len(pairs),
        num_rows_kept=min(config.num_pairs, len(pairs)),
        metrics={
            "parameters": {"before": before, "after": parameters_of(cut.ranker)},
            "sizes": {"before": asdict(sizes_of(ranker.classifier.config)), "after": asdict(_sizes(cut.ranker))},
            "vocabulary": {
                "before": ranker.classifier.config.vocab_size,
                "after": cut.ranker.classifier.config.vocab_size,
            },
            "importance": config.importance,
            "layer_importance": config.layer_importance,
            "correction": config.correction,
            "removed": {name: cut.removed[name] for name in listed if name in cut.removed},
            "output_error": cut.removed.get("output_error", {}),
        },
    )


def cut_student(
    ranker: Ranker, tokenizer: Any, pairs: Sequence[dict[str, str]], sizes: Sizes, config: PruneConfig
) -> Cut:
    """`ranker` cut down to `sizes`, by what `config` says, measured on its `num_pairs` of `pairs`; the same every time.

    Layers go first, then heads and neurons, each measured on what the cuts before have left.
    """
    removed: dict[str, Any] = {}
    if config.vocabulary == "seen":
        tokenizer, kept = smaller_tokenizer(tokenizer, seen_tokens(tokenizer, pairs))
        gone = ranker.classifier.config.vocab_size - len(kept)
        # The rows themselves are not listed: the tokenizer beside the model says what is left.
        removed["vocabulary"] = gone
        ranker = with_vocabulary(ranker, kept) if gone else ranker
    batches = calibration_batches(ranker, tokenizer, pairs, config)
    now = _sizes(ranker)
    if sizes.layers < now.layers:
        measure = layer_changes if config.layer_importance == "cosine" else layer_losses
        scores = measure(ranker, batches)
        order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
        removed["layers"] = sorted(order[: now.layers - sizes.layers])
        removed["layer_scores"] = scores
        ranker = without_layers(ranker, removed["layers"])
    generator = torch.Generator().manual_seed(config.seed)
    if (sizes.groups, sizes.heads) != (now.groups, now.heads):
        ranker = _cut_heads(ranker, batches, sizes, config, generator, removed)
    if sizes.mlp < now.mlp:
        ranker = _cut_neurons(ranker, batches, sizes, config, generator, removed)
    return Cut(ranker=ranker, tokenizer=tokenizer, removed=removed)


def seen_tokens(tokenizer: Any, pairs: Sequence[dict[str, str]]) -> set[int]:
    """The ids in the texts of `pairs`, as the ranker reads them but never cut short."""
    whole = 1 << 30
    prefixes = {(pair["query"], pair["profile"]) for pair in pairs}
    documents = sorted({pair["document"] for pair in pairs})
    seen = {i for q, p in prefixes for i in prefix_token_ids(tokenizer, q, p, max_prefix_tokens=whole)}
    for ids in document_token_ids(tokenizer, [*documents, ""], max_document_tokens=whole):
        seen.update(ids)
    return seen | set(prefix_token_ids(tokenizer, "", "", max_prefix_tokens=whole))


def calibration_batches(
    ranker: Ranker, tokenizer: Any, pairs: Sequence[dict[str, str]], config: PruneConfig
) -> list[PackedBatch]:
    """About `num_pairs` of `pairs` as packed batches: whole requests, drawn by the config's seed, the last one cut."""
    grouped = [request for request, _ in group_requests(sorted(pairs, key=lambda pair: pair["pair_id"]))]
    random.Random(f"{config.seed}/calibration").shuffle(grouped)
    left = config.num_pairs
    chosen: list[EncodedRequest] = []
    for request in grouped:
        if left <= 0:
            break
        chosen.append(encode(replace(request, documents=request.documents[:left]), tokenizer, ranker.limits))
        left -= len(chosen[-1].documents)
    return [
        pack([chosen[index] for index in batch])
        for batch in micro_batches([request.num_tokens for request in chosen], MAX_BATCH_TOKENS)
    ]


def _cut_heads(
    ranker: Ranker,
    batches: Sequence[PackedBatch],
    sizes: Sizes,
    config: PruneConfig,
    generator: torch.Generator,
    removed: dict[str, Any],
) -> Ranker:
    """The ranker with fewer groups, then with fewer query heads in each that stays."""
    now, width = _sizes(ranker), head_width(ranker.classifier.config)
    kept, outputs, errors = [], {}, []
    removed["groups"], removed["heads"] = [], []
    for index, (layer, gram) in enumerate(
        zip(ranker.classifier.model.layers, grams(ranker, batches, "attention"), strict=True)
    ):
        weight = layer.self_attn.o_proj.weight.detach()
        groups = choose(
            gram,
            weight,
            keep=sizes.groups,
            block=width * now.heads,
            importance=config.importance,
            generator=generator,
        )
        inner = columns(groups, width * now.heads)
        chosen = choose(
            gram[inner][:, inner],
            _projected(gram, weight, inner, config),
            keep=sizes.heads,
            block=width,
            families=sizes.groups,
            importance=config.importance,
            generator=generator,
        )
        heads = [groups[head // now.heads] * now.heads + head % now.heads for head in chosen]
        inputs = columns(heads, width)
        key = f"model.layers.{index}.self_attn.o_proj.weight"
        outputs[key] = _projected(gram, weight, inputs, config)
        errors.append(_errors(gram, weight, inputs, outputs[key]))
        kept.append(Kept(neurons=torch.arange(now.mlp), heads=heads, groups=groups))
        removed["groups"].append(sorted(set(range(now.groups)) - set(groups)))
        removed["heads"].append(sorted(set(range(now.groups * now.heads)) - set(heads)))
    removed.setdefault("output_error", {})["attention"] = errors
    return narrowed(ranker, kept, outputs)


def _cut_neurons(
    ranker: Ranker,
    batches: Sequence[PackedBatch],
    sizes: Sizes,
    config: PruneConfig,
    generator: torch.Generator,
    removed: dict[str, Any],
) -> Ranker:
    now = _sizes(ranker)
    kept, outputs, errors = [], {}, []
    removed["neurons"] = []
    for index, (layer, gram) in enumerate(
        zip(ranker.classifier.model.layers, grams(ranker, batches, "mlp"), strict=True)
    ):
        weight = layer.mlp.down_proj.weight.detach()
        neurons = choose(gram, weight, keep=sizes.mlp, importance=config.importance, generator=generator)
        inputs = torch.tensor(neurons)
        key = f"model.layers.{index}.mlp.down_proj.weight"
        outputs[key] = _projected(gram, weight, inputs, config)
        errors.append(_errors(gram, weight, inputs, outputs[key]))
        kept.append(Kept(neurons=inputs, heads=range(now.groups * now.heads), groups=range(now.groups)))
        removed["neurons"].append(sorted(set(range(now.mlp)) - set(neurons)))
    removed.setdefault("output_error", {})["mlp"] = errors
    return narrowed(ranker, kept, outputs)


def _projected(gram: Tensor, weight: Tensor, inputs: Tensor, config: PruneConfig) -> Tensor:
    return corrected(gram, weight, inputs) if config.correction == "least_squares" else weight[:, inputs].clone()


def _errors(gram: Tensor, weight: Tensor, inputs: Tensor, used: Tensor) -> dict[str, float]:
    """Shares of a layer's output that plain removal loses, and that the weights in use lose."""
    return {
        "plain": output_error(gram, weight, inputs, weight[:, inputs]),
        "used": output_error(gram, weight, inputs, used),
    }


def _sizes(ranker: Ranker) -> Sizes:
    return sizes_of(ranker.classifier.config)


def _save(cut: Cut, out: Path) -> None:
    """Write ``model/`` whole or not at all."""
    target, partial = out / "model", out / ".model.partial"
    for leftover in (target, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        cut.ranker.save(partial, cut.tokenizer)
        partial.rename(target)
    except Exception as error:  # safetensors and tokenizers raise types of their own where the disk refuses.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise StageFailed(
            f"{out}: the pruned model could not be written ({reason}). Free some space or choose another --root."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
