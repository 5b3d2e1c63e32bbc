"""The engine against transformers, whatever the batch, the order and the caches; and what it does with its callers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preceptor.errors import InputError, StageFailed
from preceptor_serve.engine.engine import Engine
from preceptor_serve.engine.forward import forward
from preceptor_serve.engine.jobs import Desk, new_job, next_pieces
from preceptor_serve.engine.kernels import PLAIN, Kernels, Linear, MakeLinear, make_kernels
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.packing import Packed, Piece, PrefixState, pack
from preceptor_serve.engine.student import Student, make_student
from preceptor_serve.engine.weights import UnknownArchitecture
from tests.unit.engines import (
    HEADS,
    MAX_DOCUMENT,
    MAX_PREFIX,
    VOCABULARY,
    WordTokenizer,
    classifier,
    reader,
    reference_logits,
    student,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = st.integers(1, VOCABULARY - 1)
PREFIXES = st.lists(TOKENS, min_size=1, max_size=MAX_PREFIX)
DOCUMENTS = st.lists(st.lists(TOKENS, min_size=1, max_size=MAX_DOCUMENT), min_size=1, max_size=5)
PIECES = st.lists(st.tuples(PREFIXES, DOCUMENTS), min_size=1, max_size=3)
WORDS = st.lists(
    st.sampled_from(["nurse", "welder", "night", "shift", "Leeds", "Hull", "baker,", "remote!"]), max_size=12
).map(" ".join)
REQUESTS = st.lists(st.tuples(WORDS, WORDS, st.lists(WORDS, min_size=1, max_size=6)), min_size=1, max_size=4)
BUDGETS = st.sampled_from([1, 20, 60, 1024])
CACHES = st.sampled_from([0, 1])


def in_order(packed: Packed, logits_NR: Tensor) -> Tensor:
    """Rows as the caller named the documents."""
    ordered = torch.empty_like(logits_NR)
    ordered[list(packed.order_N)] = logits_NR
    return ordered


def scored(model: Student, pieces: Sequence[Piece]) -> tuple[Tensor, tuple[PrefixState, ...]]:
    packed = pack(pieces)
    done = forward(model, packed)
    return in_order(packed, done.logits_NR), done.prefixes


def pairs_of(pieces: Sequence[tuple[list[int], list[list[int]]]]) -> list[list[int]]:
    return [prefix + document for prefix, documents in pieces for document in documents]


def options(**changes: object) -> EngineOptions:
    return replace(EngineOptions(precision="float32", threads=1), **changes)  # type: ignore[arg-type]


@contextmanager
def running(model: Student | None = None, **changes: object) -> Iterator[Engine]:
    with closing(Engine(reader(), model or student(), options(**changes))) as engine:
        yield engine


# The same logits as transformers


# One layer alone looks its keys and values up.
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@settings(max_examples=15)
@given(asked=PIECES)
def test_float32_logits_are_transformers(
    kind: str, num_layers: int, asked: list[tuple[list[int], list[list[int]]]]
) -> None:
    pieces = [Piece(prefix=prefix, documents=tuple(documents)) for prefix, documents in asked]
    model = student(kind=kind, num_layers=num_layers)
    logits, prefixes = scored(model, pieces)
    expected = reference_logits(pairs_of(asked), kind, num_layers=num_layers)
    assert (logits - expected).abs().max() <= 1e-4
    # Documents that come later, to a prefix that is known by then.
    known = [replace(piece, prefix=state) for piece, state in zip(pieces, prefixes, strict=True)]
    expected = reference_logits(pairs_of(asked[::-1]), kind, num_layers=num_layers)
    assert (scored(model, known[::-1])[0] - expected).abs().max() <= 1e-4


# Heads 32 wide are computed by the kernel that takes a whole batch at once, where there is one; heads of 16 are not.
@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("kernels", [None, PLAIN], ids=["fastest", "plain"])
@settings(max_examples=15)
@given(asked=PIECES)
def test_bfloat16_logits_are_transformers(
    kernels: Kernels | None, width: int, asked: list[tuple[list[int], list[list[int]]]]
) -> None:
    # The same rounded weights, summed by transformers in float32: two that both round each step differ by up to 2.7e-2
    # here, and neither is the truth. Largest of 2,500: the engine 1.7e-2 from it, transformers in bfloat16 1.7e-2.
    pieces = [Piece(prefix=prefix, documents=tuple(documents)) for prefix, documents in asked]
    model = student("bfloat16", spread=0.05, kernels=kernels, width=width)
    logits, prefixes = scored(model, pieces)
    expected = reference_logits(pairs_of(asked), rounded=True, spread=0.05, width=width)
    assert (logits - expected).abs().max() <= 2e-2
    # Some prefixes known by now, others not.
    mixed = [
        piece if number % 2 else replace(piece, prefix=state)
        for number, (piece, state) in enumerate(zip(pieces, prefixes, strict=True))
    ]
    assert (scored(model, mixed)[0] - expected).abs().max() <= 2e-2


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_single_layer_s_keys_and_values_are_the_same_looked_up(precision: str) -> None:
    found = student(precision, num_layers=1)
    assert found.states_VX is not None
    # Of several layers it would be the first's, and with heads as wide as these larger than the embedding.
    assert student(precision).states_VX is None and student(precision, num_layers=1, width=32).states_VX is None
    pieces = [Piece(prefix=(3, 4, 5), documents=((5, 6), (7,), tuple(range(1, 21))))]
    assert torch.equal(scored(found, pieces)[0], scored(replace(found, states_VX=None), pieces)[0])


def test_an_mlp_taken_in_parts_computes_the_same() -> None:
    whole = student()
    parts = replace(whole, kernels=replace(whole.kernels, mlp_rows=7))
    pieces = [Piece(prefix=(3, 4, 5), documents=((5, 6), (7,), tuple(range(1, 21))))]
    assert (scored(parts, pieces)[0] - scored(whole, pieces)[0]).abs().max() <= 1e-5


@settings(max_examples=15)
@given(asked=REQUESTS, budget=BUDGETS, mib=CACHES, again=st.booleans())
def test_scores_do_not_depend_on_company_order_or_caches(
    asked: list[tuple[str, str, list[str]]], budget: int, mib: int, again: bool
) -> None:
    caches: dict[str, Any] = {"score_cache_mib": mib, "prefix_cache_mib": mib, "token_cache_mib": mib}
    script = reader()
    with running(max_forward_tokens=budget, **caches) as engine:
        rounds = [asked, [(q, p, d[::-1]) for q, p, d in asked]] if again else [asked]
        for requests in rounds:
            futures = [engine.submit(*request) for request in requests]
            for (query, profile, documents), future in zip(requests, futures, strict=True):
                prefix = script.prefix_ids(query, profile)
                logits = reference_logits([prefix + ids for ids in script.document_ids(documents)])
                for got, row in zip(future.result(timeout=60), logits.tolist(), strict=True):
                    expected = script.to_score(row)
                    assert got.grade_probs == pytest.approx(expected.grade_probs, abs=1e-4)
                    assert got.score == pytest.approx(expected.score, abs=1e-4)
        assert engine.counts().num_padding_tokens == 0


def test_a_student_of_one_layer_is_computed_too() -> None:
    logits, _ = scored(student(num_layers=1), [Piece(prefix=(3, 4), documents=((5, 6), (7,)))])
    model = classifier(num_layers=1)
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([ids])).logits[0] for ids in ([3, 4, 5, 6], [3, 4, 7])]
    assert (logits - torch.stack(rows)).abs().max() <= 1e-4


def test_another_architecture_is_refused_by_name() -> None:
    model = classifier()
    other = type(model.config)(**{**model.config.to_dict(), "hidden_act": "gelu"})
    stranger = type("Stranger", (), {"config": other, "model": model.model})()
    with pytest.raises(UnknownArchitecture, match="hidden_act=gelu"):
        make_student(stranger, precision="float32", max_tokens=8)


def test_the_classifier_is_left_as_it_was() -> None:
    before = {name: weight.clone() for name, weight in classifier(dtype=torch.bfloat16).state_dict().items()}
    make_student(classifier(dtype=torch.bfloat16), precision="float32", max_tokens=8)
    after = classifier(dtype=torch.bfloat16).state_dict()
    assert all(
        torch.equal(weight, after[name]) and after[name].dtype == weight.dtype for name, weight in before.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_are_near_the_real_ones(dtype: torch.dtype) -> None:
    make = int8_linear()
    torch.manual_seed(1)
    for rows, width in ((1, 64), (33, 96), (300, 192)):
        weight, bias, x = (torch.randn(*size).to(dtype) for size in ((48, width), (48,), (rows, width)))
        # One output a thousand times larger than the others: each has a scale of its own.
        weight[5] *= 1000
        got = make(weight, bias)(x)
        assert got.dtype == dtype
        weight, bias, x = weight.float(), bias.float(), x.float()
        sizes = x.norm(dim=1).unsqueeze(1) * weight.norm(dim=1)
        assert ((got.float() - (x @ weight.T + bias)).abs() / sizes).max() <= 0.01


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_int8_sums_of_nothing_but_the_largest_numbers_do_not_overflow(rows: int) -> None:
    """Without VNNI two products of 8 bits each would not fit where the processor adds them."""
    width = 192
    got = int8_linear()(torch.full((48, width), 0.5), None)(torch.full((rows, width), 3.0))
    torch.testing.assert_close(got, torch.full((rows, 48), 1.5 * width), rtol=1e-3, atol=0)


def int8_linear() -> MakeLinear:
    try:
        return make_kernels("int8").linear
    except InputError as error:
        pytest.skip(str(error))


# What goes through the model


@given(asked=PIECES)
def test_a_packed_batch_holds_every_token_once(asked: list[tuple[list[int], list[list[int]]]]) -> None:
    packed = pack([Piece(prefix=prefix, documents=tuple(documents)) for prefix, documents in asked])
    assert packed.tokens_T.shape[0] == sum(len(prefix) + sum(map(len, documents)) for prefix, documents in asked)
    documents = [document for _, documents in asked for document in documents]
    assert sorted(packed.order_N) == list(range(len(documents)))
    for end, place in zip(packed.ends_N.tolist(), packed.order_N, strict=True):
        document = documents[place]
        assert packed.tokens_T[end + 1 - len(document) : end + 1].tolist() == document


@given(asked=REQUESTS, budget=BUDGETS)
def test_every_document_goes_once_and_passes_keep_to_their_budget(
    asked: list[tuple[str, str, list[str]]], budget: int
) -> None:
    desk = Desk(reader(), options())
    jobs = [new_job(reader(), *request, scores=None) for request in asked]
    for job in jobs:
        desk.open(job)
    went: list[tuple[int, int]] = []
    while taken := next_pieces(jobs, max_tokens=budget):
        pieces = [piece for _, _, piece in taken]
        num_documents = sum(len(piece.documents) for piece in pieces)
        assert sum(piece.num_new_tokens for piece in pieces) <= budget or num_documents == 1
        went.extend((jobs.index(job), number) for job, numbers, _ in taken for number in numbers)
    assert sorted(went) == [(job, number) for job, request in enumerate(asked) for number in range(len(request[2]))]
    # First come, first served.
    assert [job for job, _ in went] == sorted(job for job, _ in went)


def test_what_every_document_starts_with_is_computed_once() -> None:
    # "\nPosting:" is three tokens, and "\nGrade: " another three.
    with running() as engine:
        engine.score("nurse", "ward", ["baker", "welder nights"])
        assert engine.counts().num_tokens == len(reader().prefix_ids("nurse", "ward")) + 3 + (1 + 3) + (2 + 3)


# Caches


def test_a_known_score_is_not_computed_again_and_another_members_is() -> None:
    with running() as engine:
        first = engine.score("nurse", "ward", ["baker", "welder"])
        done = engine.counts()
        assert engine.score("nurse", "ward", ["welder", "baker"]) == first[::-1]
        assert engine.counts().num_tokens == done.num_tokens
        assert engine.counts().score_hits == 2
        assert engine.score("nurse", "ward nights", ["baker"]) != first[:1]
        assert engine.counts().num_documents == done.num_documents + 1


def test_a_members_next_page_computes_its_documents_alone() -> None:
    with running() as engine:
        engine.score("nurse", "ward", ["baker"])
        before = engine.counts().num_tokens
        engine.score("nurse", "ward", ["welder nights"])
        assert engine.counts().num_tokens - before == 2 + 3
        assert engine.counts().prefix_hits == 1


def test_without_caches_everything_is_computed_each_time() -> None:
    with running(score_cache_mib=0, prefix_cache_mib=0, token_cache_mib=0) as engine:
        engine.score("nurse", "ward", ["baker"])
        once = engine.counts().num_tokens
        engine.score("nurse", "ward", ["baker"])
        assert engine.counts().num_tokens == 2 * once


def test_scores_asked_afresh_are_computed_and_not_kept() -> None:
    # Without known prefixes: behind one, products have another shape, and some CPUs round otherwise (by 1.4e-7).
    with running(prefix_cache_mib=0) as engine:
        assert engine.score_afresh("nurse", "ward", ["baker"]) == engine.score_afresh("nurse", "ward", ["baker"])
        assert engine.counts().num_documents == 2
        engine.score("nurse", "ward", ["baker"])
        assert engine.counts().num_documents == 3


# Callers


class Gate:
    """A linear layer that waits at a gate, or fails, before it computes."""

    def __init__(self, inner: Linear) -> None:
        self._inner = inner
        self.entered, self.opened = threading.Event(), threading.Event()
        self.fails = self.spoils = False

    def __call__(self, x_TI: Tensor) -> Tensor:
        self.entered.set()
        assert self.opened.wait(timeout=60)
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        out_TO = self._inner(x_TI)
        if self.spoils:
            self.spoils = False
            out_TO = torch.full_like(out_TO, torch.nan)
        return out_TO


def gated() -> tuple[Student, Gate]:
    gate = Gate(student().last.query)
    return replace(student(), last=replace(student().last, query=gate)), gate


def test_a_request_whose_caller_has_gone_is_never_computed() -> None:
    model, gate = gated()
    with running(model) as engine:
        first = engine.submit("a", "b", ["c"])
        assert gate.entered.wait(timeout=60)
        second, third = engine.submit("a", "b", ["d"]), engine.submit("a", "b", ["e"])
        assert second.cancel()
        assert engine.load().num_requests == 3
        gate.opened.set()
        assert len(first.result(timeout=60)) == len(third.result(timeout=60)) == 1
        assert engine.counts().num_documents == 2


def test_requests_that_wait_together_share_a_pass() -> None:
    model, gate = gated()
    with running(model) as engine:
        futures = [engine.submit("a", "b", ["c"])]
        assert gate.entered.wait(timeout=60)
        futures += [engine.submit(f"query {number}", "b", ["d", "e"]) for number in range(5)]
        assert engine.load().num_tokens > 0
        gate.opened.set()
        for future in futures:
            future.result(timeout=60)
        assert engine.counts().num_passes == 2
        assert engine.load().num_requests == 0
        assert engine.load().tokens_per_s > 0


def test_a_pass_that_fails_fails_its_requests_and_no_others() -> None:
    model, gate = gated()
    gate.fails = True
    gate.opened.set()
    with running(model) as engine:
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.score("a", "b", ["c"])
        assert len(engine.score("a", "b", ["c"])) == 1


def test_a_defect_of_reading_or_answering_fails_its_request_and_no_others() -> None:
    class Choking(WordTokenizer):
        def __call__(self, texts: Sequence[str], **asked: Any) -> dict[str, list[list[int]]]:
            if any("choke" in text for text in texts):
                raise ValueError("no such text")
            return super().__call__(texts, **asked)

    with closing(Engine(replace(reader(), tokenizer=Choking()), student(), options())) as engine:
        with pytest.raises(ValueError, match="no such text"):
            engine.score("a", "b", ["choke"])
        assert len(engine.score("a", "b", ["c"])) == 1
    # More heads than the student has rows of logits: no answer can be made of them.
    with closing(Engine(replace(reader(), heads=(*HEADS, *HEADS)), student(), options())) as engine:
        for _ in range(2):
            with pytest.raises(ValueError, match="empty"):
                engine.score("a", "b", ["c"])
        assert engine.load().num_requests == 0


def test_a_score_that_is_no_number_is_given_once_and_never_remembered() -> None:
    model, gate = gated()
    gate.spoils = True
    gate.opened.set()
    with running(model) as engine:
        assert math.isnan(engine.score("a", "b", ["c"])[0].score)
        (again,) = engine.score("a", "b", ["c"])
        assert math.isfinite(again.score)
        assert engine.counts().prefix_hits == engine.counts().score_hits == 0


def test_a_pass_that_hangs_shows() -> None:
    model, gate = gated()
    with running(model) as engine:
        assert engine.stuck_s() == 0
        future = engine.submit("a", "b", ["c"])
        assert gate.entered.wait(timeout=60)
        assert 0 < engine.stuck_s() < 3600
        gate.opened.set()
        future.result(timeout=60)
    assert engine.stuck_s() == float("inf")


def test_a_closed_engine_cancels_what_waits_and_takes_nothing() -> None:
    model, gate = gated()
    engine = Engine(reader(), model, options())
    engine.submit("a", "b", ["c"])
    assert gate.entered.wait(timeout=60)
    waiting = engine.submit("a", "b", ["d"])
    closer = threading.Thread(target=engine.close)
    closer.start()
    gate.opened.set()
    closer.join(timeout=60)
    with pytest.raises(CancelledError):
        waiting.result(timeout=60)
    with pytest.raises(StageFailed, match="closed"):
        engine.submit("a", "b", ["c"])


def test_no_documents_are_answered_by_none() -> None:
    with running() as engine:
        assert engine.score("a", "b", []) == ()


@pytest.mark.parametrize(
    ("field", "value"), [("precision", "int4"), ("threads", -1), ("max_forward_tokens", 0), ("score_cache_mib", -1)]
)
def test_options_that_make_no_sense_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{field} must be .*{value}"):
        options(**{field: value})
