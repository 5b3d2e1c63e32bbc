"""A synthetic job market: queries, members, postings and traffic of any size, with known truth.

Everything here is constructed from a seed. Its grades are the market's own truth, not human judgements; its clicks
are simulated.
"""

from preceptor.market.groups import (
    Ask,
    Candidate,
    Group,
    generate_ask,
    generate_group,
    generate_pairs,
    generate_request,
)
from preceptor.market.latent import Member, Place, Posting, Query
from preceptor.market.stage import market
from preceptor.market.truth import grade, grade_all

__all__ = [
    "Ask",
    "Candidate",
    "Group",
    "Member",
    "Place",
    "Posting",
    "Query",
    "generate_ask",
    "generate_group",
    "generate_pairs",
    "generate_request",
    "grade",
    "grade_all",
    "market",
]
