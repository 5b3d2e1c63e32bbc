"""The one model class: a Hugging Face sequence classifier whose rows are named heads.

Shapes: T tokens of a packed batch, N documents in it, H hidden size, R rows of the score matrix (5 for a grade head, 1
for an action head), V vocabulary.

A packed batch holds requests one after the other: a prefix once, then its documents. Every document attends the
prefix and itself, and its positions go on from the prefix's end, so that its logits equal those of the pair alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from preceptor.contracts import ACTIONS, NUM_GRADES
from preceptor.errors import InputError
from preceptor.ranker import attention, last_layer
from preceptor.ranker.attention import Layout, PaddedRows
from preceptor.recipe import BackboneConfig


@dataclass(frozen=True, kw_only=True)
class Head:
    """One named head: five consecutive rows for a grade, one for an action."""

    name: str
    kind: Literal["grade", "action"]

    @property
    def size(self) -> int:
        """How many rows of the score matrix are its own."""
        return NUM_GRADES if self.kind == "grade" else 1


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Requests laid end to end as T tokens, with N documents among them."""

    tokens_T: Tensor
    positions_T: Tensor
    ends_N: Tensor
    """Index of each document's last token."""
    layout: Layout | PaddedRows

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on `device`."""
        if device.type == "cpu":
            return self
        return PackedBatch(
            tokens_T=self.tokens_T.to(device),
            positions_T=self.positions_T.to(device),
            ends_N=self.ends_N.to(device),
            layout=self.layout.to(device),
        )


def grade_heads(names: Sequence[str]) -> tuple[Head, ...]:
    """A grade head for each name."""
    return tuple(Head(name=name, kind="grade") for name in names)


def action_heads(names: Sequence[str] = ACTIONS) -> tuple[Head, ...]:
    """An action head for each name."""
    return tuple(Head(name=name, kind="action") for name in names)


def head_slices(heads: Sequence[Head]) -> dict[str, slice]:
    """The rows of each head in the score matrix, in order."""
    slices, start = {}, 0
    for head in heads:
        slices[head.name] = slice(start, start + head.size)
        start += head.size
    return slices


class Ranker(nn.Module):
    """Logits of every head for every document of a packed batch, from a Hugging Face sequence classifier."""

    def __init__(self, classifier: Any, heads: Sequence[Head], limits: BackboneConfig) -> None:
        super().__init__()
        attention.register()
        classifier.set_attn_implementation(attention.NAME)
        self.classifier = classifier
        self.heads = tuple(heads)
        self.limits = limits

    def forward(self, batch: PackedBatch) -> Tensor:
        """Raw logits [N, R] of the batch's documents, in float32."""
        if self.classifier.config.model_type in last_layer.KNOWN:
            ends_NH = last_layer.last_hidden(
                self.classifier.model, batch.tokens_T, batch.positions_T, batch.layout, batch.ends_N
            )
            return self.classifier.score(ends_NH).float()
        hidden_1TH = self.classifier.model(
            input_ids=batch.tokens_T.unsqueeze(0),
            position_ids=batch.positions_T.unsqueeze(0),
            use_cache=False,
            layout=batch.layout,
        ).last_hidden_state
        return self.classifier.score(hidden_1TH[0].index_select(0, batch.ends_N)).float()

    @property
    def policy_version(self) -> str | None:
        """Version and content hash of the policy it was trained under; None for a model that learns from clicks alone.

        It stands in config.json as `preceptor_policy_version`, and travels with every copy of the weights.
        """
        return getattr(self.classifier.config, "preceptor_policy_version", None)

    def set_policy_version(self, version: str | None) -> None:
        """Say in config.json under which policy it is trained."""
        if version is not None:
            self.classifier.config.preceptor_policy_version = version

    def save(self, target: Path, tokenizer: Any) -> None:
        """Write a standard Hugging Face directory that transformers and vLLM load unchanged."""
        self.classifier.save_pretrained(target)
        tokenizer.save_pretrained(target)


def init_ranker(config: BackboneConfig, backbone: str, heads: Sequence[Head]) -> tuple[Ranker, Any]:
    """A ranker whose grade heads are the language model's own rows for the digits 0 to 4, and its tokenizer.

    So the untrained teacher grades as the zero-shot model would. Action heads start at zero: probability one half.
    With `config.num_layers` only the lowest layers are kept.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone)
    language_model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    if not hasattr(getattr(language_model, "model", None), "layers"):
        raise InputError(
            f"{backbone}: a {language_model.config.model_type} model cannot share a prefix among documents, which "
            f"takes a decoder. Choose a backbone built like {', '.join(last_layer.KNOWN)}."
        )
    rows_VH = language_model.get_output_embeddings().weight.detach()
    classifier = _classifier(language_model.config, heads, tokenizer, config)
    classifier.model.load_state_dict(language_model.model.state_dict())
    digits = [tokenizer.convert_tokens_to_ids(str(grade)) for grade in range(NUM_GRADES)]
    with torch.no_grad():
        classifier.score.weight.zero_()
        for head, rows in zip(heads, head_slices(heads).values(), strict=True):
            if head.kind == "grade":
                classifier.score.weight[rows] = rows_VH[digits]
    ranker = Ranker(classifier, heads, config)
    return (lowest_layers(ranker, config.num_layers) if config.num_layers else ranker), tokenizer


def load_ranker(directory: Path, *, dtype: torch.dtype = torch.float32) -> tuple[Ranker, Any]:
    """The ranker saved in `directory` and its tokenizer; InputError where it is not one of ours."""
    from transformers import AutoModelForSequenceClassification

    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json; not a model directory. Point at a bundle or a stage's model/.")
    classifier, found = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=dtype, output_loading_info=True
    )
    config = vars(classifier.config)
    heads = heads_in(config, directory)
    if found["missing_keys"]:
        # transformers would fill them with random numbers.
        lacking = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"{directory}: its weights lack {lacking}. The model is damaged; make it again.")
    ranker = Ranker(classifier.eval(), heads, limits_in(config, directory))
    return ranker, load_tokenizer(directory)


def heads_in(config: Mapping[str, Any], directory: Path) -> tuple[Head, ...]:
    """The heads that `config`, the content of config.json in `directory`, names; InputError where it names none."""
    named = config.get("preceptor_heads")
    if named is None:
        raise InputError(f"{directory}/config.json: no preceptor_heads; this classifier was not made by Preceptor.")
    return tuple(Head(**head) for head in named)


def limits_in(config: Mapping[str, Any], directory: Path) -> BackboneConfig:
    """How many tokens the ranker in `directory` reads, by `config`, the content of its config.json."""
    return BackboneConfig(
        source=str(directory),
        max_prefix_tokens=config["preceptor_max_prefix_tokens"],
        max_document_tokens=config["preceptor_max_document_tokens"],
    )


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer saved beside a ranker."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def with_heads(ranker: Ranker, heads: Sequence[Head], tokenizer: Any) -> Ranker:
    """A ranker with the same backbone and new heads: rows of heads it has already are kept, others start at zero."""
    classifier = _classifier(ranker.classifier.config, heads, tokenizer, ranker.limits)
    classifier.model.load_state_dict(ranker.classifier.model.state_dict())
    before, after = head_slices(ranker.heads), head_slices(heads)
    with torch.no_grad():
        classifier.score.weight.zero_()
        for name, rows in after.items():
            if name in before:
                classifier.score.weight[rows] = ranker.classifier.score.weight[before[name]]
    return Ranker(classifier, heads, ranker.limits)


def lowest_layers(ranker: Ranker, num_layers: int) -> Ranker:
    """The same ranker with only its `num_layers` lowest layers: a smaller backbone to start from."""
    return _with_layers(ranker, list(range(min(num_layers, len(ranker.classifier.model.layers)))))


def spaced_layers(ranker: Ranker, num_layers: int) -> Ranker:
    """The same ranker with `num_layers` evenly spaced layers, first and last among them: a student's warm start."""
    total = len(ranker.classifier.model.layers)
    wanted = min(num_layers, total)
    return _with_layers(ranker, [round(index * (total - 1) / max(wanted - 1, 1)) for index in range(wanted)])


def _with_layers(ranker: Ranker, kept: list[int]) -> Ranker:
    model, config = ranker.classifier.model, ranker.classifier.config
    model.layers = nn.ModuleList(model.layers[index] for index in kept)
    for index, layer in enumerate(model.layers):
        layer.self_attn.layer_idx = index
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    return ranker


def _classifier(config: Any, heads: Sequence[Head], tokenizer: Any, limits: BackboneConfig) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    fresh = AutoConfig.for_model(**{**config.to_dict(), "architectures": None})
    labels = [f"{head.name}/{row}" if head.kind == "grade" else head.name for head in heads for row in range(head.size)]
    fresh.id2label = dict(enumerate(labels))
    fresh.label2id = {label: index for index, label in fresh.id2label.items()}
    fresh.pad_token_id = tokenizer.pad_token_id
    fresh.use_cache = False
    fresh.preceptor_heads = [{"name": head.name, "kind": head.kind} for head in heads]
    fresh.preceptor_max_prefix_tokens = limits.max_prefix_tokens
    fresh.preceptor_max_document_tokens = limits.max_document_tokens
    return AutoModelForSequenceClassification.from_config(fresh, dtype=torch.float32)
