"""Preceptor: from a product policy and graded examples to a distilled ranker."""
