"""Pruning: what does not matter goes unnoticed, the rest makes up for what does, and a plain checkpoint is left."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from preceptor.errors import InputError, RecipeError
from preceptor.plan import make_plan
from preceptor.ranker.model import Ranker, load_ranker
from preceptor.ranker.text import prompt_token_ids
from preceptor.recipe import Importance, PruneConfig
from preceptor.recipes import headlines, tiny
from preceptor.record import Record, fingerprint_of, to_jsonable
from preceptor.student.importance import choose, columns, corrected, grams, layer_changes, layer_losses, output_error
from preceptor.student.prune import Cut, calibration_batches, cut_student, prune, seen_tokens
from preceptor.student.shapes import Sizes, parameters_of, require_prunable, round_half_up, sizes_of, target_sizes
from preceptor.student.vocabulary import smaller_tokenizer, with_vocabulary
from preceptor_serve.engine.student import make_student
from tests.unit import pruning
from tests.unit.pruning import GROUPS, LAYERS, MLP, QUERIES, WIDTH, logits, pairs, student_record, tokenizer

WHOLE = Sizes(layers=LAYERS, groups=GROUPS, heads=QUERIES, mlp=MLP)
METHODS: tuple[Importance, ...] = ("osscar", "activation", "magnitude")
EXACT = 2e-4
"""Largest difference of a logit by the order of float32 sums alone; logits here are about 5."""


def config(**values: Any) -> PruneConfig:
    return PruneConfig(**{"recovery_steps": 8, "mlp": 0.5, "num_pairs": 40, **values})


def cut(ranker: Ranker, sizes: Sizes, **values: Any) -> Cut:
    return cut_student(ranker, tokenizer(), pairs(), sizes, config(**values))


def silence(weight: Tensor, inputs: Any) -> None:
    with torch.no_grad():
        weight[:, inputs] = 0


def drawn(seed: int, *, inputs: int = 24, outputs: int = 7, num_tokens: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated activations [T, D], their Gram matrix and weights [O, D]."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(inputs // 2, inputs, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_tokens, inputs, generator=generator, dtype=torch.float64)
    read = torch.randn(num_tokens, inputs // 2, generator=generator, dtype=torch.float64) @ basis + 0.3 * noise
    return read, read.T @ read, torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


# what may go unnoticed


@pytest.mark.parametrize("method", METHODS)
def test_neurons_that_say_nothing_go_without_a_trace(method: Importance) -> None:
    ranker = pruning.ranker()
    dumb = list(range(1, MLP, 2))
    for layer in ranker.classifier.model.layers:
        silence(layer.mlp.down_proj.weight, dumb)
    before = logits(ranker, tokenizer())
    found = cut(ranker, replace(WHOLE, mlp=MLP - len(dumb)), importance=method)
    assert found.removed["neurons"] == [dumb] * LAYERS
    assert torch.allclose(logits(found.ranker, tokenizer()), before, atol=EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_heads_and_groups_that_say_nothing_go_without_a_trace(method: Importance) -> None:
    """The second group is dumb, and of the others the first query head of one and the second of the other."""
    ranker = pruning.ranker()
    for layer in ranker.classifier.model.layers:
        silence(layer.self_attn.o_proj.weight, columns([0, 2, 3, 5], WIDTH))
    before = logits(ranker, tokenizer())
    found = cut(ranker, replace(WHOLE, groups=2, heads=1), importance=method)
    assert found.removed["groups"] == [[1]] * LAYERS and found.removed["heads"] == [[0, 2, 3, 5]] * LAYERS
    assert sizes_of(found.ranker.classifier.config) == replace(WHOLE, groups=2, heads=1)
    assert torch.allclose(logits(found.ranker, tokenizer()), before, atol=EXACT)


@pytest.mark.parametrize("measure", ["cosine", "ablation"])
def test_a_layer_that_changes_nothing_is_the_first_to_go(measure: Any) -> None:
    ranker = pruning.ranker()
    idle = ranker.classifier.model.layers[2]
    silence(idle.self_attn.o_proj.weight, slice(None))
    silence(idle.mlp.down_proj.weight, slice(None))
    before = logits(ranker, tokenizer())
    found = cut(ranker, replace(WHOLE, layers=LAYERS - 1), layer_importance=measure)
    assert found.removed["layers"] == [2] and abs(found.removed["layer_scores"][2]) < 1e-6
    assert min(score for index, score in enumerate(found.removed["layer_scores"]) if index != 2) > 1e-3
    assert torch.allclose(logits(found.ranker, tokenizer()), before, atol=EXACT)


# importance


def test_gram_matrices_are_of_what_the_projections_read_and_of_the_last_layer_only_where_it_is_read() -> None:
    ranker = pruning.ranker()
    batches = calibration_batches(ranker, tokenizer(), pairs(), config())
    seen: dict[int, list[Tensor]] = {0: [], LAYERS - 1: []}
    for index, kept in seen.items():
        module = ranker.classifier.model.layers[index].mlp.down_proj
        module.register_forward_pre_hook(lambda _m, args, kept=kept: kept.append(args[0][0]))
    found = grams(ranker, batches, "mlp")
    first = torch.cat(seen[0]).double()
    ends = torch.cat(seen[LAYERS - 1]).double()
    assert torch.allclose(found[0], first.T @ first, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[-1], ends.T @ ends, rtol=1e-4, atol=1e-4)
    assert len(ends) == len(pairs()) and sum(len(batch.ends_N) for batch in batches) == len(pairs())


def test_measuring_leaves_the_student_as_it_was() -> None:
    ranker = pruning.ranker()
    before = logits(ranker, tokenizer())
    batches = calibration_batches(ranker, tokenizer(), pairs(), config())
    assert len(layer_changes(ranker, batches)) == len(layer_losses(ranker, batches)) == LAYERS
    cut(ranker, Sizes(layers=3, groups=2, heads=1, mlp=16))
    assert torch.equal(logits(ranker, tokenizer()), before)
    assert sizes_of(ranker.classifier.config) == WHOLE


@given(seed=st.integers(0, 10_000), keep=st.integers(1, 24), damping=st.sampled_from([1e-6, 0.01, 1.0]))
@settings(max_examples=60)
def test_the_correction_never_loses_more_output_than_plain_removal(seed: int, keep: int, damping: float) -> None:
    read, gram, weight = drawn(seed)
    kept = torch.randperm(24, generator=torch.Generator().manual_seed(seed + 1))[:keep].sort().values
    better = corrected(gram, weight, kept, damping=damping)
    errors = [float((read @ weight.T - read[:, kept] @ used.T).square().sum()) for used in (better, weight[:, kept])]
    assert errors[0] <= errors[1] * (1 + 1e-9)
    whole = float((read @ weight.T).square().sum())
    assert output_error(gram, weight, kept, better) == pytest.approx(errors[0] / whole, rel=1e-6, abs=1e-9)


def test_with_little_ridge_the_correction_is_the_least_squares_solution() -> None:
    read, gram, weight = drawn(3)
    kept = torch.arange(0, 24, 2)
    wanted = torch.linalg.lstsq(read[:, kept], read @ weight.T).solution.T
    assert torch.allclose(corrected(gram, weight, kept, damping=1e-12), wanted, atol=1e-6)


@pytest.mark.parametrize("block", [1, 4])
def test_elimination_takes_each_time_the_block_whose_loss_is_made_up_best(block: int) -> None:
    """Against the definition: of all ways to remove one more block, the one with the least error after correction."""
    _, gram, weight = drawn(11)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    left = list(range(24 // block))
    for _ in range(24 // block - 2):
        errors = {}
        for gone in left:
            kept = columns([other for other in left if other != gone], block)
            errors[gone] = output_error(damped, weight, kept, corrected(damped, weight, kept, damping=1e-14))
        left.remove(min(errors, key=lambda gone: errors[gone]))
    assert choose(gram, weight, keep=2, block=block) == left


@pytest.mark.parametrize("method", [*METHODS, "random"])
@pytest.mark.parametrize(("families", "keep"), [(1, 5), (2, 3), (3, 2), (6, 1), (3, 4)])
def test_as_many_blocks_stay_in_each_family(method: Importance, families: int, keep: int) -> None:
    _, gram, weight = drawn(7)
    generator = torch.Generator().manual_seed(1)
    kept = choose(gram, weight, keep=keep, block=2, families=families, importance=method, generator=generator)
    assert kept == sorted(set(kept)), "each block once, in order"
    assert [sum(block // (12 // families) == family for block in kept) for family in range(families)] == [
        keep
    ] * families


def test_osscar_loses_less_than_importance_that_looks_at_each_input_alone() -> None:
    """Two inputs that say the same: alone each matters most, but one of them makes up for the other."""
    generator = torch.Generator().manual_seed(5)
    read = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    read[:, 1] = read[:, 0]
    weight = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    weight[:, :2] *= 2
    gram = read.T @ read
    kept = {method: choose(gram, weight, keep=7, importance=method) for method in METHODS}
    errors = {
        method: output_error(gram, weight, torch.tensor(left), corrected(gram, weight, torch.tensor(left)))
        for method, left in kept.items()
    }
    assert set(range(8)) - set(kept["osscar"]) <= {0, 1} <= set(kept["activation"])
    assert errors["osscar"] < 1e-4 < 0.01 < errors["activation"]


def test_inputs_that_no_token_uses_are_no_division_by_zero() -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(6, 6, dtype=torch.float64)
    for method in METHODS:
        assert len(choose(zero, weight, keep=2, importance=method)) == 2
    assert torch.equal(corrected(zero, weight, torch.tensor([1, 4])), weight[:, [1, 4]])


# sizes


def test_rounds_reach_exactly_the_target_sizes(tmp_path: Path) -> None:
    wanted = config(mlp=0.5, heads=0.5, groups=1 / 3, layers=0.5, num_rounds=3, recovery_steps=9)
    student = student_record(tmp_path / "distill", pruning.ranker())
    model, sizes = student, []
    for number in (1, 2, 3):
        model = prune(wanted, student=student, model=model, round=number, out=tmp_path / f"prune_{number}" / "v1")
        loaded, _ = load_ranker(model.path / "model")
        sizes.append(sizes_of(loaded.classifier.config))
        assert asdict(sizes[-1]) == model.metrics["sizes"]["after"]
        assert parameters_of(loaded) == model.metrics["parameters"]["after"]
    assert sizes == [target_sizes(WHOLE, wanted, round=number) for number in (1, 2, 3)]
    at_once = target_sizes(WHOLE, replace(wanted, num_rounds=1), round=1)
    assert sizes[-1] == at_once == Sizes(layers=2, groups=2, heads=1, mlp=16)


@given(start=st.integers(1, 400), share=st.floats(0, 0.999), num_rounds=st.integers(1, 6))
def test_targets_fall_from_round_to_round_and_something_stays(start: int, share: float, num_rounds: int) -> None:
    size = Sizes(layers=start, groups=start, heads=start, mlp=start * 8)
    wanted = PruneConfig(
        mlp=share, layers=share, groups=share, heads=share, vocabulary="seen", num_rounds=num_rounds, recovery_steps=9
    )
    left = [size, *(target_sizes(size, wanted, round=number) for number in range(1, num_rounds + 1))]
    for before, after in pairwise(left):
        assert all(1 <= getattr(after, name) <= getattr(before, name) for name in ("layers", "groups", "heads", "mlp"))
        assert after.mlp % 8 == 0
    assert left[-1].layers == max(round_half_up(start * (1 - share)), 1)


def test_the_recovery_steps_of_all_rounds_add_up() -> None:
    train = tiny().distill.train  # type: ignore[union-attr]
    wanted = config(num_rounds=3, recovery_steps=10, learning_rate=3e-4)
    rounds = [wanted.recovery(train, round=number) for number in (1, 2, 3)]
    assert [item.num_steps for item in rounds] == [3, 3, 4]
    assert {item.learning_rate for item in rounds} == {3e-4} and len({item.seed for item in rounds}) == 3


def test_recovery_is_gentle_unless_told_otherwise() -> None:
    train = tiny().distill.train  # type: ignore[union-attr]
    assert config().recovery(train, round=1).learning_rate == pytest.approx(train.learning_rate / 10)


# checkpoints


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("pruned")
    student = student_record(folder / "distill", pruning.ranker())
    wanted = config(mlp=0.5, groups=1 / 3, heads=0.5, layers=0.25, vocabulary="seen")
    return prune(wanted, student=student, model=student, out=folder / "prune" / "v1")


@torch.no_grad()
def test_what_is_left_is_a_plain_checkpoint(pruned: Record) -> None:
    """transformers alone gives the logits of the packed ranker, with nothing missing; our engine takes it as well."""
    folder = pruned.path / "model"
    plain, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    words = AutoTokenizer.from_pretrained(folder)
    ranker, own = load_ranker(folder)
    lengths = {"max_prefix_tokens": 24, "max_document_tokens": 24}
    rows = pairs()[:6]
    packed = logits(ranker, own, rows)
    for row, wanted in zip(rows, packed, strict=True):
        ids = prompt_token_ids(words, row["query"], row["profile"], row["document"], **lengths)
        assert torch.allclose(plain.eval()(torch.tensor([ids])).logits[0], wanted, atol=EXACT)
    assert plain.config.vocab_size == len(words) == plain.model.embed_tokens.weight.shape[0]
    assert plain.config.pad_token_id == words.pad_token_id and plain.config.eos_token_id == words.eos_token_id
    engine = make_student(plain, precision="float32", max_tokens=48)
    assert engine.shape.num_key_heads == 2 and engine.shape.num_heads == 2 and engine.shape.width == WIDTH


def test_the_record_says_what_went_and_how_much_is_left(pruned: Record) -> None:
    metrics = pruned.metrics
    before, after = metrics["parameters"]["before"], metrics["parameters"]["after"]
    assert before == parameters_of(pruning.ranker())
    assert after["outside_embeddings"] < before["outside_embeddings"] / 2 and after["total"] < before["total"]
    assert metrics["importance"] == "osscar" and metrics["correction"] == "least_squares"
    assert len(metrics["removed"]["layers"]) == 1 and len(metrics["removed"]["heads"]) == LAYERS - 1
    for part in ("attention", "mlp"):
        assert all(0 < layer["used"] <= layer["plain"] for layer in metrics["output_error"][part])
    listed = json.loads((pruned.path / "removed.json").read_text())
    assert [len(layer) for layer in listed["neurons"]] == [MLP // 2] * (LAYERS - 1)


def test_the_same_seed_cuts_the_same_and_finished_work_is_found(pruned: Record, tmp_path: Path) -> None:
    student = student_record(tmp_path / "distill", pruning.ranker())
    wanted = config(mlp=0.5, groups=1 / 3, heads=0.5, layers=0.25, vocabulary="seen")
    again = prune(wanted, student=student, model=student, out=tmp_path / "prune" / "v1")
    assert again.metrics == pruned.metrics and again.fingerprint == pruned.fingerprint
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (again.path, pruned.path)]
    assert weights[0] == weights[1]
    longer = replace(wanted, recovery_steps=99)
    assert prune(longer, student=student, model=student, out=tmp_path / "prune" / "v1") == again


def test_random_cuts_follow_the_seed() -> None:
    removed = [
        cut(pruning.ranker(), replace(WHOLE, mlp=16), importance="random", seed=seed).removed["neurons"]
        for seed in (1, 1, 2)
    ]
    assert removed[0] == removed[1] != removed[2]


def test_calibration_takes_as_many_pairs_as_asked_whatever_their_order() -> None:
    ranker = pruning.ranker()
    drawn = [calibration_batches(ranker, tokenizer(), rows, config(num_pairs=13)) for rows in (pairs(), pairs()[::-1])]
    assert sum(len(batch.ends_N) for batch in drawn[0]) == 13
    assert all(torch.equal(a.tokens_T, b.tokens_T) for a, b in zip(*drawn, strict=True))


def test_an_architecture_without_a_gated_mlp_is_refused() -> None:
    ranker = pruning.ranker()
    for layer in ranker.classifier.model.layers:
        layer.mlp.gate_proj = nn.Identity()
    with pytest.raises(InputError, match="no gate_proj to cut"):
        require_prunable(ranker)


# vocabulary


@pytest.fixture(scope="module")
def reduced() -> tuple[Ranker, Any, list[int]]:
    small, kept = smaller_tokenizer(tokenizer(), seen_tokens(tokenizer(), pairs()))
    return with_vocabulary(pruning.ranker(), kept), small, kept


def test_texts_of_seen_tokens_keep_their_pieces_and_logits(reduced: tuple[Ranker, Any, list[int]]) -> None:
    ranker, small, kept = reduced
    assert len(kept) < len(tokenizer()), "the words of other texts are gone"
    for row in pairs():
        text = f"{row['query']}\n{row['document']}"
        assert small.tokenize(text) == tokenizer().tokenize(text)
        assert [kept[number] for number in small(text)["input_ids"]] == tokenizer()(text)["input_ids"]
    assert torch.equal(logits(ranker, small), logits(pruning.ranker(), tokenizer()))


@given(text=st.text(max_size=40))
def test_any_other_text_is_read_whole_in_smaller_pieces(reduced: tuple[Ranker, Any, list[int]], text: str) -> None:
    _, small, kept = reduced
    ids = small(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert small.decode(ids, clean_up_tokenization_spaces=False) == text, "bytes stand in for what is gone"
    assert len(ids) >= len(tokenizer()(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    assert all(0 <= number < len(kept) for number in ids)


def test_an_unseen_word_falls_to_pieces_that_were_kept(reduced: tuple[Ranker, Any, list[int]]) -> None:
    ranker, small, _ = reduced
    word = " " + pruning.UNSEEN[1]
    assert len(tokenizer().tokenize(word)) == 1 < len(small.tokenize(word))
    assert small.decode(small(word)["input_ids"]) == word
    row = {**pairs()[0], "document": word}
    assert torch.isfinite(logits(ranker, small, [row])).all()


def test_special_tokens_keep_their_meaning_under_new_numbers(reduced: tuple[Ranker, Any, list[int]]) -> None:
    ranker, small, kept = reduced
    config = ranker.classifier.config
    for name in ("pad", "eos"):
        number = getattr(small, f"{name}_token_id")
        assert number == getattr(config, f"{name}_token_id")
        assert kept[number] == getattr(tokenizer(), f"{name}_token_id")
    assert small("<end>")["input_ids"] == [small.eos_token_id]


def test_a_tokenizer_that_is_no_bpe_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(InputError, match="cuts BPE tokenizers, got WordLevel"):
        smaller_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words), [0])


# recipes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mlp": 1.0}, "mlp must be a share"),
        ({"mlp": 0.5, "layers": -0.1}, "layers must be a share"),
        ({"mlp": 0.0}, "nothing to cut"),
        ({"mlp": 0.5, "num_rounds": 0}, "num_rounds must be above 0"),
        ({"mlp": 0.5, "num_pairs": 0}, "num_pairs must be above 0"),
        ({"mlp": 0.5, "num_rounds": 3, "recovery_steps": 2}, "each of 3 rounds recovers for a step at least, got 2"),
        ({"mlp": 0.5, "learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_its_pruning(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PruneConfig(**{"recovery_steps": 5, **values})


def test_pruning_needs_a_student() -> None:
    with pytest.raises(RecipeError, match="prune cuts a distilled student"):
        replace(headlines(), prune=config())


def test_a_plan_cuts_and_recovers_in_rounds_and_exports_the_last() -> None:
    plain = [step.name for step in make_plan(tiny())]
    steps = {step.name: step for step in make_plan(replace(tiny(), prune=config(num_rounds=2)))}
    start = plain.index("distill") + 1
    assert [*steps] == [*plain[:start], "prune_1", "recover_1", "prune", "recover", *plain[start:]]
    assert steps["prune_1"].needs == ("distill",) and steps["prune"].needs == ("distill", "recover_1")
    assert steps["recover"].needs == ("distill", "prune")
    assert "recover" in steps["student_scores"].needs and "recover" in steps["export"].needs
    once = [step.name for step in make_plan(replace(tiny(), prune=config()))]
    assert once == [*plain[:start], "prune", "recover", *plain[start:]]


def test_a_recipe_without_pruning_has_the_record_it_had() -> None:
    described = to_jsonable(tiny())
    assert "prune" not in described
    pruned = to_jsonable(replace(tiny(), prune=config()))
    assert {key: value for key, value in pruned.items() if key != "prune"} == described
    assert fingerprint_of("run", pruned, {}, None) != fingerprint_of("run", described, {}, None)
