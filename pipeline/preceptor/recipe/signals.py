"""What is known of a query and a posting before anybody judges them."""

from __future__ import annotations

from typing import Final, Literal, get_args

PlainSignal = Literal[
    "text",
    "names",
    "best_name",
    "title_text",
    "title_names",
    "words",
    "tasks",
    "near",
    "group",
    "best_of_group",
    "minor_group",
]
"""One number for a query and a posting, which nothing was learnt for.

``text`` is the cosine of the query and the posting's title and description, ``names`` that of the query and all names
of the posting taken together, ``best_name`` the closest one's. ``title_...`` compares what was typed, without the
profile. ``words`` is TF-IDF over names and description. ``tasks`` is the mean cosine of the profile's tasks, 0 where it
has none. A posting is also known by its kin: ``near`` is the mean cosine of the eight postings closest to it, ``group``
and ``minor_group`` that of all in its ISCO unit group or minor group, and ``best_of_group`` the largest in its unit
group.
"""
TunedSignal = Literal["tuned_text", "tuned_names"]
"""With an adapter that a teacher learns, ``tuned_text`` compares the query as ``text`` does, ``tuned_names`` what was
typed as ``title_names`` does."""

Signal = PlainSignal | TunedSignal

PLAIN_SIGNALS: Final[tuple[PlainSignal, ...]] = get_args(PlainSignal)
SIGNALS: Final[tuple[Signal, ...]] = (*PLAIN_SIGNALS, *get_args(TunedSignal))
