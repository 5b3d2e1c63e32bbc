"""Requests as packed batches: the prefix once, its documents after it, nothing computed twice and no padding.

The other layout, a padded row for each pair, is what most trainers do; both say the same of every document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preceptor.ranker.attention import PaddedRows, make_layout
from preceptor.ranker.model import PackedBatch
from preceptor.ranker.text import document_token_ids, prefix_token_ids
from preceptor.recipe import BackboneConfig
from preceptor.recipe.compute import BatchLayout


@dataclass(frozen=True, kw_only=True)
class Request:
    """One query and profile with the documents to be scored for it."""

    query: str
    profile: str
    documents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EncodedRequest:
    """Token ids of a request: its prefix and each document's part."""

    prefix: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens it takes in a packed batch."""
        return len(self.prefix) + sum(map(len, self.documents))

    @property
    def num_padded_tokens(self) -> int:
        """Tokens it takes as a row for each pair, padded to its longest document."""
        return len(self.documents) * (len(self.prefix) + max(map(len, self.documents), default=0))


def encode(request: Request, tokenizer: Any, limits: BackboneConfig) -> EncodedRequest:
    """`request` as token ids, cut to the limits."""
    prefix = prefix_token_ids(tokenizer, request.query, request.profile, max_prefix_tokens=limits.max_prefix_tokens)
    documents = document_token_ids(tokenizer, request.documents, max_document_tokens=limits.max_document_tokens)
    return EncodedRequest(prefix=tuple(prefix), documents=tuple(map(tuple, documents)))


def num_tokens(request: EncodedRequest, layout: BatchLayout) -> int:
    """Tokens the request takes in a batch of that layout, by itself."""
    return request.num_tokens if layout == "shared" else request.num_padded_tokens


def micro_batches(lengths: Iterable[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of `lengths` in order, in batches of at most `max_tokens` together (one index at least)."""
    batch: list[int] = []
    used = 0
    for index, length in enumerate(lengths):
        if batch and used + length > max_tokens:
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += length
    if batch:
        yield batch


def lay_out(requests: Sequence[EncodedRequest], layout: BatchLayout) -> PackedBatch:
    """The requests as one batch in the layout of that name; documents keep their order."""
    return pack(requests) if layout == "shared" else pad(requests)


def pad(requests: Sequence[EncodedRequest]) -> PackedBatch:
    """The requests as one row for each pair, its prefix repeated, padded to the longest; documents keep their order."""
    rows = [request.prefix + document for request in requests for document in request.documents]
    longest = max(map(len, rows))
    tokens_NS = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens_NS[number, : len(row)] = torch.tensor(row)
    return PackedBatch(
        tokens_T=tokens_NS.flatten(),
        positions_T=torch.arange(longest).repeat(len(rows)),
        ends_N=torch.tensor([number * longest + len(row) - 1 for number, row in enumerate(rows)]),
        layout=PaddedRows(num_rows=len(rows), length=longest),
    )


def pack(requests: Sequence[EncodedRequest]) -> PackedBatch:
    """The requests as one batch, laid end to end without padding; documents keep their order."""
    tokens: list[int] = []
    positions: list[Tensor] = []
    ends, owners, document_lengths = [], [], []
    for owner, request in enumerate(requests):
        shared = len(request.prefix)
        tokens.extend(request.prefix)
        positions.append(torch.arange(shared))
        for document in request.documents:
            tokens.extend(document)
            positions.append(torch.arange(shared, shared + len(document)))
            ends.append(len(tokens) - 1)
            owners.append(owner)
            document_lengths.append(len(document))
    return PackedBatch(
        tokens_T=torch.tensor(tokens, dtype=torch.long),
        positions_T=torch.cat(positions),
        ends_N=torch.tensor(ends, dtype=torch.long),
        layout=make_layout([len(request.prefix) for request in requests], owners, document_lengths),
    )


def group_requests(pairs: Sequence[dict[str, Any]]) -> list[tuple[Request, list[str]]]:
    """PAIRS rows as requests in order of first appearance, each with its pair ids in the documents' order."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for pair in pairs:
        groups.setdefault((pair["query_id"], pair["profile_id"]), []).append(pair)
    return [
        (
            Request(
                query=group[0]["query"],
                profile=group[0]["profile"],
                documents=tuple(pair["document"] for pair in group),
            ),
            [pair["pair_id"] for pair in group],
        )
        for group in groups.values()
    ]
