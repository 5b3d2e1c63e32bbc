"""Between a parsed request and the scorers: its time, its key's share, one call for all parts, checked scores back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from fastapi import Request

from preceptor.bundle import Blend
from preceptor_serve.blending import OutOfBounds, blended
from preceptor_serve.depth import Cost, depths
from preceptor_serve.metrics import Metrics
from preceptor_serve.pace import MAX_RETRY_S, Pace
from preceptor_serve.rates import retry_after
from preceptor_serve.reading import Ask, blend_refused
from preceptor_serve.schema import BlendWeights, Depth, DocumentResult, Limits, Refusal, ScoreAnswer, UnscoredResult
from preceptor_serve.scorer import Answer, AsyncScorer, Overloaded, TooLate, all_of, checked
from preceptor_serve.served_log import Part, ServedLog


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What answers requests in one edge process."""

    scorer: AsyncScorer
    limits: Limits
    metrics: Metrics
    pace: Pace
    clock: Callable[[], float]
    log: ServedLog | None = None

    def keep(self, request_id: str, parts: Iterable[Part]) -> None:
        """Hand an answered request to the served log, if there is one and it is sampled. Never waits."""
        if self.log is not None and self.log.wants(request_id):
            # Of a request that was cut, what was scored: nothing else has a row.
            scored = (replace(part, ask=part.ask.first(len(part.answer.scores))) for part in parts)
            self.log.offer(request_id, tuple(scored))

    async def answer(self, request: Request, asks: Sequence[Ask], *, deadline_s: float | None) -> list[Answer]:
        """An answer for each of `asks`, its scores checked; all or none. Of an ask that is cut, its first documents'.

        Refusal 429 where they cannot be there in `deadline_s` from the request's head, or where its key has had its
        documents of this minute, or too much waits. BadScore where an answer must not be sent.
        """
        left_s = None if deadline_s is None else deadline_s - (self.clock() - request.state.started_s)
        num_asked = sum(len(ask.documents) for ask in asks)
        asks = self._cut(asks, left_s)
        work = sum(ask.num_chars for ask in asks)
        num_documents = sum(len(ask.documents) for ask in asks)
        if left_s is not None:
            self.pace.require(work, left_s=left_s)
        self.pace.require_short(self.limits.max_wait_s)
        if (holder := getattr(request.state, "holder", None)) is not None:
            holder.spend_documents(num_documents)
        self.metrics.sent(num_documents)
        try:
            with self.pace.under_way(work):
                answers = await _within(left_s, self.scorer, asks)
        except Overloaded as error:
            error.retry_after_s = max(error.retry_after_s, retry_after(min(self.pace.drain_s(), MAX_RETRY_S)))
            raise
        finally:
            self.metrics.came_back(num_documents)
        sound = [
            replace(answer, scores=checked(answer.scores, num_documents=len(ask.documents)))
            for ask, answer in zip(asks, answers, strict=True)
        ]
        self.metrics.scored(num_documents)
        if num_documents < num_asked:
            self.metrics.left_out(num_asked - num_documents)
        for answer in sound:
            if answer.standing is not None:
                self.metrics.engines.heard(answer.standing)
        return sound

    def _cut(self, asks: Sequence[Ask], left_s: float | None) -> list[Ask]:
        """`asks` with as many documents as there is time for; whole where nobody agreed to fewer."""
        options = self.limits.depth
        share = 1.0 if options is None else options.share_at(self.pace.drain_s())
        room = math.inf if left_s is None else self.pace.room(left_s)
        costs = []
        for ask in asks:
            num = len(ask.documents)
            agreed = num if options is None else options.least_of(num)
            least = agreed if ask.min_documents is None else min(num, ask.min_documents)
            once = len(ask.query) + len(ask.profile)
            costs.append(Cost(once=once, documents=[len(text) for text in ask.documents], least=least))
        return [ask.first(depth) for ask, depth in zip(asks, depths(costs, room=room, share=share), strict=True)]


async def _within(left_s: float | None, scorer: AsyncScorer, asks: Sequence[Ask]) -> list[Answer]:
    try:
        async with asyncio.timeout(left_s):
            return await all_of(scorer.score(ask.query, ask.profile, ask.documents) for ask in asks)
    except TimeoutError as error:
        raise TooLate("not answered by its deadline") from error


def to_answer(ask: Ask, ids: Sequence[str | None], answer: Answer, *, inside: str) -> ScoreAnswer:
    """`answer` in the API's shape, under the blend that `ask` wants; `inside` is where `ask` stood in its body.

    Documents of `ask` beyond those that `answer` has scores of come back as unscored.
    """
    ranking = ask.blend or answer.identity.blend
    num_asked, num_scored = len(ask.documents), len(answer.scores)
    results: list[DocumentResult | UnscoredResult]
    try:
        results = [
            DocumentResult(
                index=index,
                id=name,
                score=score.score if ask.blend is None else blended(score, ask.blend),
                expected_grade=score.expected_grade,
                grade_probs=list(score.grade_probs),
                actions=dict(score.actions),
            )
            for index, (name, score) in enumerate(zip(ids[:num_scored], answer.scores, strict=True))
        ]
    except OutOfBounds as error:
        raise blend_refused(error, inside=inside) from None
    results += [UnscoredResult(index=index, id=ids[index]) for index in range(num_scored, num_asked)]
    return ScoreAnswer(
        bundle_id=answer.identity.bundle_id,
        policy_version=answer.identity.policy_version,
        blend=weights_of(ranking),
        depth=None if num_scored == num_asked else Depth(asked=num_asked, scored=num_scored),
        results=results,
    )


def weights_of(blend: Blend | None) -> BlendWeights | None:
    """`blend` in the API's shape. Not validated: a bundle's own blend may lie outside what a request may ask."""
    return None if blend is None else BlendWeights.model_construct(**asdict(blend))


async def read_body(request: Request, *, limits: Limits) -> bytes:
    """The request's body; Refusal 413 as soon as it is declared, or turns out, too large, 408 where it stays out."""
    max_bytes = limits.max_body_bytes
    refusal = Refusal(413, "body_too_large", f"A body may have {max_bytes} bytes. Send fewer or shorter documents.")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > max_bytes:
        raise refusal
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise refusal
                body += chunk
    except TimeoutError:
        message = f"The body did not arrive within {limits.body_timeout_s:g} s. Send it in one go."
        raise Refusal(408, "body_timeout", message) from None
    return bytes(body)
