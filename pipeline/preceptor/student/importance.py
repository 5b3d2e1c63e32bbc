"""What of a student matters: which inputs of a projection may go, how the rest makes up for them, and which layers.

Shapes: T tokens, D inputs of a projection (neurons of an MLP, or the heads' outputs side by side), O its outputs, B
inputs of one block (1 for a neuron, a head's width for a head), N documents, R rows of the heads.

What a projection reads is known by its Gram matrix, the sum over calibration tokens of x x^T: every function here that
chooses or corrects reads that and the weights alone. Of the last layer only the documents' last tokens are counted,
because nothing else of its output is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, kl_div, log_softmax

from preceptor.ranker.model import PackedBatch, Ranker, head_slices
from preceptor.recipe import Importance

DAMPING: Final = 0.01
"""Ridge of every solve, as a share of the Gram matrix's mean diagonal: calibration tokens may be fewer than inputs."""

_NUM_SWEEPS: Final = 32
"""A greedy elimination takes that many steps at most: it removes several blocks at once where many have to go."""

Part = Literal["attention", "mlp"]


@torch.no_grad()
def grams(ranker: Ranker, batches: Sequence[PackedBatch], part: Part) -> list[Tensor]:
    """For each layer the Gram matrix [D, D], in float64, of what its o_proj (attention) or down_proj (mlp) reads."""
    layers = ranker.classifier.model.layers
    projections = [layer.self_attn.o_proj if part == "attention" else layer.mlp.down_proj for layer in layers]
    found = [torch.zeros(module.in_features, module.in_features, dtype=torch.float64) for module in projections]

    def add(index: int, inputs_1TD: Tensor, ends_N: Tensor) -> None:
        read_TD = _read(inputs_1TD, index, len(layers), ends_N).float()
        found[index] += (read_TD.T @ read_TD).cpu().double()

    for batch in batches:
        with _hooked(projections, lambda i, args, _out, batch=batch: add(i, args[0], batch.ends_N)):  # type: ignore[misc]
            ranker(batch)
    return found


@torch.no_grad()
def layer_changes(ranker: Ranker, batches: Sequence[PackedBatch]) -> list[float]:
    """For each layer 1 - the mean cosine of a token's hidden state before and after it: 0 for one that turns nothing.

    Source: the block influence of Men et al., "ShortGPT" (arXiv 2403.03853), section 3.
    """
    model = ranker.classifier.model
    num_layers = len(model.layers)
    totals = [0.0] * num_layers
    num_tokens = [0] * num_layers
    # What a layer reads is what the one before has left; the last norm reads what the last layer has left.
    readers = [*(layer.input_layernorm for layer in model.layers), model.norm]
    left: dict[int, Tensor] = {}

    def add(reader: int, hidden_1TH: Tensor, ends_N: Tensor) -> None:
        left[reader] = hidden_1TH
        if reader == 0:
            return
        index = reader - 1
        before_TH, after_TH = (
            _read(found, index, num_layers, ends_N).float() for found in (left.pop(index), hidden_1TH)
        )
        totals[index] += float((1 - cosine_similarity(before_TH, after_TH, dim=-1)).double().sum())
        num_tokens[index] += len(before_TH)

    for batch in batches:
        with _hooked(readers, lambda i, args, _out, batch=batch: add(i, args[0], batch.ends_N)):  # type: ignore[misc]
            ranker(batch)
    return [total / max(count, 1) for total, count in zip(totals, num_tokens, strict=True)]


@torch.no_grad()
def layer_losses(ranker: Ranker, batches: Sequence[PackedBatch]) -> list[float]:
    """For each layer how far the outputs move without it: the mean divergence over documents and heads, in nats."""
    model = ranker.classifier.model
    whole = model.layers
    wanted = [ranker(batch) for batch in batches]
    losses = []
    try:
        for gone in range(len(whole)):
            model.layers = nn.ModuleList(layer for index, layer in enumerate(whole) if index != gone)
            moved = [divergence(ranker(batch), rows, ranker) for batch, rows in zip(batches, wanted, strict=True)]
            losses.append(sum(moved) / max(sum(len(rows) for rows in wanted), 1))
    finally:
        model.layers = whole
    return losses


def divergence(logits_NR: Tensor, wanted_NR: Tensor, ranker: Ranker) -> float:
    """KL of what `wanted_NR` says from what `logits_NR` say, summed over documents, mean over heads, in nats."""
    total = 0.0
    for head, rows in zip(ranker.heads, head_slices(ranker.heads).values(), strict=True):
        got, want = logits_NR[:, rows].double(), wanted_NR[:, rows].double()
        if head.kind == "grade":
            target = log_softmax(want, -1)
            total += float(kl_div(log_softmax(got, -1), target, reduction="sum", log_target=True))
        else:
            prob = torch.sigmoid(want)
            crossed = binary_cross_entropy_with_logits(got, prob, reduction="sum")
            total += float(crossed - binary_cross_entropy_with_logits(want, prob, reduction="sum"))
    return total / len(ranker.heads)


def choose(
    gram_DD: Tensor,
    weight_OD: Tensor,
    *,
    keep: int,
    block: int = 1,
    families: int = 1,
    importance: Importance = "osscar",
    generator: torch.Generator | None = None,
) -> list[int]:
    """The blocks of `block` inputs to keep, in order: `keep` of each of `families` equal runs of consecutive blocks.

    - ``magnitude``: those of largest weights |W_b|.
    - ``activation``: those that add most to the output, |X_b W_b^T|. For single inputs that is the norm of the
      activation times the norm of the weights, the sum of squares of Sun et al., "Wanda" (arXiv 2306.11695), over a
      column; Muralidharan et al., "Minitron" (arXiv 2407.14679) rank structures in the same way.
    - ``osscar``: one after the other those go whose loss the rest can make up best, by the exact increase of the
      least-squares error and rank updates of the inverse, after Meng et al., "OSSCAR" (arXiv 2403.12983): its
      backward elimination, without the local search for swaps.
    - ``random``: drawn by `generator`; a baseline.
    """
    num_blocks = gram_DD.shape[0] // block
    size = num_blocks // families
    if importance == "osscar":
        return _eliminated(gram_DD, weight_OD, keep=keep, block=block, size=size)
    scores = _scores(gram_DD, weight_OD, block, importance, generator).view(families, size)
    # A stable sort of the negated scores: of equal blocks the first stays.
    best = torch.sort(-scores, dim=1, stable=True).indices[:, :keep]
    return sorted((best + size * torch.arange(families).unsqueeze(1)).flatten().tolist())


def columns(blocks: Sequence[int], block: int) -> Tensor:
    """The inputs that make up `blocks`, in order."""
    return (torch.tensor(blocks).unsqueeze(1) * block + torch.arange(block)).flatten()


def corrected(gram_DD: Tensor, weight_OD: Tensor, kept: Tensor, *, damping: float = DAMPING) -> Tensor:
    """The weights [O, kept] whose output comes closest to that of all inputs, in least squares over the Gram's tokens.

    With S the kept inputs and R the rest: W_S + W_R G_RS (G_SS + ridge)^-1, OSSCAR's closed form. The ridge pulls
    towards W_S, so that the error on these tokens is never above that of plain removal.
    """
    gone = _rest(kept, gram_DD.shape[0])
    ridge = damping * float(gram_DD.diagonal().mean())
    plain = weight_OD[:, kept]
    if not ridge or not len(gone):
        return plain.clone()
    inner = gram_DD[kept][:, kept] + ridge * torch.eye(len(kept), dtype=torch.float64)
    shift_SO = torch.linalg.solve(inner, gram_DD[kept][:, gone] @ weight_OD[:, gone].double().T.cpu())
    return plain + shift_SO.T.to(plain)


def output_error(gram_DD: Tensor, weight_OD: Tensor, kept: Tensor, weight_OS: Tensor) -> float:
    """Squared error of the output of `kept` inputs under `weight_OS`, as a share of the whole output's square."""
    difference = weight_OD.double().cpu().clone()
    whole = _energy(gram_DD, difference)
    difference[:, kept] -= weight_OS.double().cpu()
    return _energy(gram_DD, difference) / whole if whole else 0.0


def _energy(gram_DD: Tensor, weight_OD: Tensor) -> float:
    return float(((weight_OD @ gram_DD) * weight_OD).sum())


def _scores(
    gram_DD: Tensor, weight_OD: Tensor, block: int, importance: Importance, generator: torch.Generator | None
) -> Tensor:
    weight = weight_OD.double().cpu()
    num = gram_DD.shape[0] // block
    if importance == "random":
        return torch.rand(num, generator=generator, dtype=torch.float64)
    blocks_nBO = weight.T.reshape(num, block, -1)
    if importance == "magnitude":
        return blocks_nBO.square().sum((1, 2))
    return ((_diagonal_blocks(gram_DD, block) @ blocks_nBO) * blocks_nBO).sum((1, 2))


def _eliminated(gram_DD: Tensor, weight_OD: Tensor, *, keep: int, block: int, size: int) -> list[int]:
    """The blocks that are left after a greedy backward elimination down to `keep` of each run of `size` blocks.

    `inverse` and `solution_DO` are those of the blocks that are left: without block b the error grows by
    tr(W_b (inverse_bb)^-1 W_b^T), as in optimal brain surgery.
    """
    num = gram_DD.shape[0] // block
    ridge = DAMPING * float(gram_DD.diagonal().mean()) or 1.0
    inverse = torch.linalg.inv(gram_DD + ridge * torch.eye(gram_DD.shape[0], dtype=torch.float64))
    solution_DO = weight_OD.double().cpu().T.clone()
    alive = list(range(num))
    spare = {family: size - keep for family in range(num // size)}
    at_once = max((num - keep * len(spare)) // _NUM_SWEEPS, 1)
    while any(spare.values()):
        blocks_nBO = solution_DO.view(len(alive), block, -1)
        increase = (blocks_nBO * torch.linalg.solve(_diagonal_blocks(inverse, block), blocks_nBO)).sum((1, 2))
        going: list[int] = []
        for place in torch.sort(increase, stable=True).indices.tolist():
            family = alive[place] // size
            if spare[family] and len(going) < at_once:
                spare[family] -= 1
                going.append(place)
        gone = columns(sorted(going), block)
        left = _rest(gone, len(alive) * block)
        transfer = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, left]).T
        solution_DO = solution_DO[left] - transfer @ solution_DO[gone]
        inverse = inverse[left][:, left] - transfer @ inverse[gone][:, left]
        dropped = set(going)
        alive = [number for place, number in enumerate(alive) if place not in dropped]
    return alive


def _diagonal_blocks(square_DD: Tensor, block: int) -> Tensor:
    num = square_DD.shape[0] // block
    return torch.stack([square_DD[i * block : (i + 1) * block, i * block : (i + 1) * block] for i in range(num)])


def _rest(kept: Tensor, total: int) -> Tensor:
    left = torch.ones(total, dtype=torch.bool)
    left[kept] = False
    return left.nonzero().flatten()


def _read(states_1TX: Tensor, index: int, num_layers: int, ends_N: Tensor) -> Tensor:
    """What is read of a layer's tokens: all of them, of the last layer the documents' ends, where it computed more."""
    more = index == num_layers - 1 and states_1TX.shape[1] != len(ends_N)
    return states_1TX[0].index_select(0, ends_N) if more else states_1TX[0]


@contextmanager
def _hooked(modules: Sequence[nn.Module] | nn.ModuleList, see: Callable[[int, Any, Any], None]) -> Iterator[None]:
    """In the body, `see(number, inputs, output)` is called whenever one of `modules` has computed."""
    handles = [
        module.register_forward_hook(lambda _module, args, out, i=number: see(i, args, out))
        for number, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
