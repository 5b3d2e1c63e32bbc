"""What a recipe checks its values with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from preceptor.errors import RecipeError

LATER: Final[Mapping[str, bool]] = MappingProxyType({"later": True})
"""Metadata of a field that came after runs had been recorded: at its default it is in no record or fingerprint.

So what the field adds leaves finished runs of recipes that do not use it finished.
"""

UNCOUNTED: Final[Mapping[str, bool]] = MappingProxyType({"uncounted": True})
"""Metadata of a field that changes no byte of what comes out: it is in no record or fingerprint, whatever it says."""


def require(condition: bool, message: str) -> None:
    """Nothing, or RecipeError with `message`."""
    if not condition:
        raise RecipeError(message)


def is_http_url(url: str) -> bool:
    """Whether `url` names a host over http or https, with a port that is one where it has one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def without_credentials(url: str) -> str:
    """`url` with dots for what stands before an @."""
    scheme, slashes, rest = url.rpartition("//")
    return f"{scheme}{slashes}{'...@' if '@' in rest else ''}{rest.rpartition('@')[2]}"
