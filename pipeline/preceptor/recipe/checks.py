"""What a recipe checks its values with."""

from __future__ import annotations

from urllib.parse import urlsplit

from preceptor.errors import RecipeError


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
