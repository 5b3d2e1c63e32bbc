"""From a user's corpora of postings and profiles to pairs worth labelling."""

from preceptor.generate.stage import generate

__all__ = ["generate"]
