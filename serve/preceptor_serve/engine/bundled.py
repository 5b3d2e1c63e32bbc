"""What every engine of a bundle says and does alike; how it computes is its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future

from preceptor.bundle import TOLERANCE, Blend, DocumentScore, Reader
from preceptor_serve.engine.caches import ByteCache
from preceptor_serve.engine.jobs import Desk, Logits
from preceptor_serve.engine.options import EngineOptions


class BundledEngine(ABC):
    """An engine around a bundle's reader, with the caches of its desk."""

    def __init__(self, reader: Reader, options: EngineOptions) -> None:
        self.reader = reader
        self.options = options
        self._desk = Desk(reader, options)

    @property
    def bundle_id(self) -> str:
        return self.reader.bundle_id

    @property
    def policy_version(self) -> str:
        return self.reader.policy_version

    @property
    def blend(self) -> Blend:
        return self.reader.blend

    @property
    def tolerance(self) -> float:
        """Largest accepted difference of a probability from the known answers."""
        return TOLERANCE

    def submit(self, query: str, profile: str, documents: Sequence[str]) -> Future[tuple[DocumentScore, ...]]:
        """The scores of `documents`, in time. Cancelling the future gives up what has not been computed."""
        return self._submit(query, profile, documents, self._desk.scores)

    def score(self, query: str, profile: str, documents: Sequence[str]) -> tuple[DocumentScore, ...]:
        """The scores of `documents`."""
        return self.submit(query, profile, documents).result()

    def score_afresh(self, query: str, profile: str, documents: Sequence[str]) -> tuple[DocumentScore, ...]:
        """The scores of `documents`, computed even where they are known, and not kept."""
        return self._submit(query, profile, documents, None).result()

    def probe(self) -> float:
        """The largest difference of a probability from the known answers; ParityError above `tolerance`."""
        return self.reader.probe(self.score_afresh, tolerance=self.tolerance)

    @abstractmethod
    def _submit(
        self, query: str, profile: str, documents: Sequence[str], scores: ByteCache[Logits] | None
    ) -> Future[tuple[DocumentScore, ...]]:
        """The scores in time; found in and kept in `scores` where it is given."""
