"""Scoring requests with a ranker in this process: packed, without padding, in the caller's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preceptor.ranker.batches import EncodedRequest, Request, encode, micro_batches, pack
from preceptor.ranker.model import Ranker

MAX_BATCH_TOKENS = 2048
"""Tokens of one forward pass; larger batches gain nothing on 2 cores and hold more memory."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Consecutive documents of one request that go through the model together."""

    request: int
    start: int
    encoded: EncodedRequest


@torch.no_grad()
def score_requests(
    ranker: Ranker, tokenizer: Any, requests: Sequence[Request], *, max_batch_tokens: int = MAX_BATCH_TOKENS
) -> list[Tensor]:
    """For each request the raw logits [documents, R] in float32, in the documents' order.

    Requests that share a batch do not change each other's logits; long candidate lists are cut into pieces that repeat
    the prefix.
    """
    encoded = [encode(request, tokenizer, ranker.limits) for request in requests]
    num_rows = ranker.classifier.score.weight.shape[0]
    logits = [torch.empty(len(request.documents), num_rows) for request in requests]
    device = ranker.classifier.score.weight.device
    pieces = list(_pieces(encoded, max_batch_tokens))
    for indices in micro_batches([piece.encoded.num_tokens for piece in pieces], max_batch_tokens):
        batch = [pieces[index] for index in indices]
        scores_NR = ranker(pack([piece.encoded for piece in batch]).to(device)).cpu()
        done = 0
        for piece in batch:
            count = len(piece.encoded.documents)
            logits[piece.request][piece.start : piece.start + count] = scores_NR[done : done + count]
            done += count
    return logits


def _pieces(requests: Sequence[EncodedRequest], max_tokens: int) -> Iterator[_Piece]:
    for number, request in enumerate(requests):
        start, used = 0, len(request.prefix)
        for index, document in enumerate(request.documents):
            if index > start and used + len(document) > max_tokens:
                yield _cut(number, request, start, index)
                start, used = index, len(request.prefix)
            used += len(document)
        if start < len(request.documents):
            yield _cut(number, request, start, len(request.documents))


def _cut(number: int, request: EncodedRequest, start: int, stop: int) -> _Piece:
    part = EncodedRequest(prefix=request.prefix, documents=request.documents[start:stop])
    return _Piece(request=number, start=start, encoded=part)
