"""A request on its way through the engine: what it asks, what it still lacks, and which piece of it goes next."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from preceptor.bundle import DocumentScore, Reader
from preceptor_serve.engine.caches import ByteCache, content_key
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.packing import Piece, PrefixState, Tokens

Logits = tuple[float, ...]

_MIB = 2**20
# What a key and Python's own objects take beside a value.
_ENTRY_BYTES = 300
_CHARS_PER_TOKEN = 4


@dataclass(kw_only=True, eq=False)
class Job:
    """A request that waits or is worked on. `rows` fills up; `waiting` holds what has to be computed, by length."""

    query: str
    profile: str
    documents: tuple[str, ...]
    scores: ByteCache[Logits] | None
    guessed_tokens: int
    future: Future[tuple[DocumentScore, ...]] = field(default_factory=Future)
    rows: list[Logits | None] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    prefix_key: bytes = b""
    prefix: Tokens | PrefixState = ()
    waiting: deque[tuple[int, Tokens]] = field(default_factory=deque)
    waiting_tokens: int | None = None
    """Tokens of `waiting`, as a number that other threads may read while the deque changes; None before it is read."""

    @property
    def num_tokens(self) -> int:
        """Tokens that have to be computed for it, guessed from its characters until it has been read."""
        waiting, prefix = self.waiting_tokens, self.prefix
        if waiting is None:
            return self.guessed_tokens
        return waiting + (0 if isinstance(prefix, PrefixState) or not waiting else len(prefix))

    @property
    def is_done(self) -> bool:
        return bool(self.rows) and all(row is not None for row in self.rows)


def new_job(
    reader: Reader, query: str, profile: str, documents: Sequence[str], scores: ByteCache[Logits] | None
) -> Job:
    """A job that nobody has read yet."""
    lengths = (len(text) // _CHARS_PER_TOKEN + 1 for text in documents)
    prefix = min((len(query) + len(profile)) // _CHARS_PER_TOKEN, reader.max_prefix_tokens)
    guessed = prefix + sum(min(length, reader.max_document_tokens) for length in lengths)
    return Job(query=query, profile=profile, documents=tuple(documents), scores=scores, guessed_tokens=guessed)


class Desk:
    """Reads jobs: token ids out of texts, with the caches of an engine. One thread's."""

    def __init__(self, reader: Reader, options: EngineOptions) -> None:
        self._reader = reader
        self.scores: ByteCache[Logits] = ByteCache(options.score_cache_mib * _MIB)
        self.prefixes: ByteCache[PrefixState] = ByteCache(options.prefix_cache_mib * _MIB)
        self.tokens: ByteCache[array[int]] = ByteCache(options.token_cache_mib * _MIB)
        # What every document starts with is shared too: it joins the prefix of its request.
        bare, other = reader.document_ids(["", "a"])
        self._opening = tuple(bare[: _num_shared(bare, other)])

    def open(self, job: Job) -> None:
        """Fill in what is known of `job`, and the token ids of what is not."""
        # All texts are in the key of a score: the same document scores otherwise for another member.
        job.keys = [content_key(self._reader.bundle_id, job.query, job.profile, text) for text in job.documents]
        job.rows = [None if job.scores is None else job.scores.get(key) for key in job.keys]
        lacking = [index for index, row in enumerate(job.rows) if row is None]
        if not lacking:
            job.waiting_tokens = 0
            return
        documents = self._document_tokens([job.documents[index] for index in lacking])
        opening = self._opening if all(self._starts(tokens) for tokens in documents) else ()
        job.prefix = (*self._reader.prefix_ids(job.query, job.profile), *opening)
        job.prefix_key = content_key(job.query, job.profile, str(len(opening)))
        known = self.prefixes.get(job.prefix_key)
        if known is not None:
            job.prefix = known
        own = [(index, tokens[len(opening) :]) for index, tokens in zip(lacking, documents, strict=True)]
        job.waiting = deque(sorted(own, key=lambda item: len(item[1])))
        job.waiting_tokens = sum(len(tokens) for _, tokens in own)

    def keep(self, job: Job, index: int, row: Logits) -> bool:
        """Whether the logits of one document are numbers, after noting them; for later requests too where they are."""
        job.rows[index] = row
        sound = all(map(math.isfinite, row))
        if job.scores is not None and sound:
            job.scores.put(job.keys[index], row, num_bytes=_ENTRY_BYTES + 32 * len(row))
        return sound

    def keep_prefix(self, job: Job, state: PrefixState) -> None:
        """Note what a job's prefix came to, for its other documents and for the next request of the same member."""
        if job.prefix is not state:
            job.prefix = state
            self.prefixes.put(job.prefix_key, state, num_bytes=_ENTRY_BYTES + state.num_bytes)

    def _document_tokens(self, texts: Sequence[str]) -> list[Tokens]:
        keys = [content_key(text) for text in texts]
        found: dict[bytes, Tokens] = {}
        for key in keys:
            if (packed := self.tokens.get(key)) is not None:
                found[key] = tuple(packed)
        lacking = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        for key, ids in zip(lacking, self._reader.document_ids(list(lacking.values())), strict=True):
            found[key] = tuple(ids)
            # Packed: an integer of Python's own takes 36 bytes in a tuple, nine times what it needs.
            packed = array("i", ids)
            self.tokens.put(key, packed, num_bytes=_ENTRY_BYTES + packed.itemsize * len(packed))
        return [found[key] for key in keys]

    def _starts(self, tokens: Tokens) -> bool:
        # A document keeps at least one token of its own, whatever it is cut to.
        return len(tokens) > len(self._opening) and tuple(tokens[: len(self._opening)]) == self._opening


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def next_pieces(jobs: Sequence[Job], *, max_tokens: int) -> list[tuple[Job, tuple[int, ...], Piece]]:
    """What goes through the model next: documents of `jobs` in their order, with their numbers, up to `max_tokens`.

    At least one document, however long. What is taken no longer waits.
    """
    taken: list[tuple[Job, tuple[int, ...], Piece]] = []
    room = max_tokens
    for job in jobs:
        if not job.waiting:
            continue
        used = 0 if isinstance(job.prefix, PrefixState) else len(job.prefix)
        numbers: list[int] = []
        documents: list[Tokens] = []
        while job.waiting and (used + len(job.waiting[0][1]) <= room or not (taken or documents)):
            index, tokens = job.waiting.popleft()
            used += len(tokens)
            numbers.append(index)
            documents.append(tokens)
        if documents:
            job.waiting_tokens = (job.waiting_tokens or 0) - sum(map(len, documents))
            taken.append((job, tuple(numbers), Piece(prefix=job.prefix, documents=tuple(documents))))
            room -= used
        if job.waiting:
            # First come, first served: nobody overtakes a job that has not fitted.
            break
    return taken
