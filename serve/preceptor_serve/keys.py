"""API keys: a file of salted hashes, and the ring that checks a presented key against it.

A key is ``pcp_ID_SECRET``. The id finds the line, so one hash is computed for a request. The secret has 256 random
bits, so a fast salted hash (BLAKE2b) holds: there is nothing to guess, and a slow one would cost more than scoring.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal

from preceptor.errors import InputError
from preceptor_serve.rates import Bucket, retry_after
from preceptor_serve.schema import Refusal

logger = logging.getLogger("preceptor_serve")

NAME_PATTERN: Final = r"[A-Za-z0-9._\-]{1,64}"
_KEY_PATTERN: Final = re.compile(r"pcp_([0-9a-f]{8})_([A-Za-z0-9_\-]{43})")
_NOBODY: Final = "0" * 64

Guard = Literal["keys", "gateway"]
"""Who may open a port to others: keys of this scorer's own, or a gateway in front that authenticates."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One line of the file: who holds the key, the salted hash of its secret, and what it may ask a minute."""

    id: str
    name: str
    salt: str
    digest: str
    requests_per_minute: int
    documents_per_minute: int
    created: str

    def __post_init__(self) -> None:
        texts = (self.id, self.name, self.salt, self.digest, self.created)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("id, name, salt, digest and created are strings")
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise ValueError(f"a name has 1 to 64 of A-Z a-z 0-9 . _ -, got {self.name!r}")
        for part, size in (("id", 4), ("salt", 16), ("digest", 32)):
            if len(bytes.fromhex(getattr(self, part))) != size:
                raise ValueError(f"{part} has {size} bytes in hexadecimal")
        for number in (self.requests_per_minute, self.documents_per_minute):
            if type(number) is not int or number < 1:
                raise ValueError(f"a limit is a whole number above 0, got {number!r}")


def new_key(name: str, *, requests_per_minute: int, documents_per_minute: int) -> tuple[str, Key]:
    """The key as its holder sends it, and its line of the file; InputError where name or limits are no good."""
    secret, salt, key_id = secrets.token_urlsafe(32), secrets.token_hex(16), secrets.token_hex(4)
    try:
        key = Key(
            id=key_id,
            name=name,
            salt=salt,
            digest=_digest(secret, salt),
            requests_per_minute=requests_per_minute,
            documents_per_minute=documents_per_minute,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    except ValueError as error:
        raise InputError(f"key '{name}': {error}. Choose another.") from error
    return f"pcp_{key_id}_{secret}", key


def _digest(secret: str, salt: str) -> str:
    return hashlib.blake2b(secret.encode(), digest_size=32, salt=bytes.fromhex(salt)).hexdigest()


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys of `file`; InputError where it is missing or not such a file."""
    try:
        keys = tuple(Key(**line) for line in json.loads(file.read_text())["keys"])
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file. Make one with: preceptor keys add NAME --file {file}") from error
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError) as error:
        message = f"{file}: not a file of keys ({type(error).__name__}: {error}). Make it with `preceptor keys`."
        raise InputError(message) from error
    for part in ("id", "name"):
        if len({getattr(key, part) for key in keys}) != len(keys):
            raise InputError(f"{file}: two keys have the same {part}. Remove one with: preceptor keys remove NAME")
    return keys


def add_key(file: Path, name: str, *, requests_per_minute: int, documents_per_minute: int) -> str:
    """The new key, after its hash was added to `file`, which is made where it is missing. It is not kept anywhere."""
    with _sole_writer(file):
        keys = read_keys(file) if file.exists() else ()
        if any(key.name == name for key in keys):
            raise InputError(f"{file}: '{name}' has a key. Remove it first, or choose another name.")
        shown, key = new_key(name, requests_per_minute=requests_per_minute, documents_per_minute=documents_per_minute)
        _write(file, [*keys, key])
    return shown


def remove_key(file: Path, name: str) -> None:
    """Nothing, after the key of `name` was taken out of `file`; InputError where it has none."""
    with _sole_writer(file):
        keys = read_keys(file)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise InputError(f"{file}: no key of '{name}'. Known: {', '.join(key.name for key in keys) or 'none'}.")
        _write(file, left)


@contextmanager
def _sole_writer(file: Path) -> Iterator[None]:
    """While the body runs no other process of this kind writes in the folder of `file`."""
    if not file.parent.is_dir():
        raise InputError(f"{file.parent}: no such directory. Make it first.")
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(file: Path, keys: Sequence[Key]) -> None:
    # mkstemp makes the file readable by its owner alone, and the rename keeps that.
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w") as out:
            json.dump({"keys": [asdict(key) for key in keys]}, out, indent=1)
            out.write("\n")
        os.replace(partial, file)
    except BaseException:
        os.unlink(partial)
        raise


class Holder:
    """A key in use, and what it has left of this minute in this process."""

    def __init__(self, key: Key, *, share: float, clock: Callable[[], float]) -> None:
        self.key = key
        self._clock = clock
        self._requests = Bucket(key.requests_per_minute * share, now_s=clock())
        self._documents = Bucket(key.documents_per_minute * share, now_s=clock())

    def spend_request(self) -> None:
        """Nothing; Refusal 429 where the key has had its requests of this minute."""
        self._spend(self._requests, 1, f"{self.key.requests_per_minute} requests")

    def spend_documents(self, num_documents: int) -> None:
        """Nothing; Refusal 429 where the key has had its documents of this minute."""
        self._spend(self._documents, num_documents, f"{self.key.documents_per_minute} documents")

    def _spend(self, bucket: Bucket, cost: int, what: str) -> None:
        wait_s = bucket.take(cost, now_s=self._clock())
        if wait_s > 0:
            message = f"This key may send {what} a minute. Send fewer, or retry later."
            raise Refusal(429, "rate_limited", message, retry_after_s=retry_after(wait_s))


class KeyRing:
    """The keys of a file, read again whenever it changes.

    `share` is this process's part of each key's limits. A file that turns unreadable leaves the last good keys in force
    and is logged once: an operator's slip must not lock every caller out. To lock all out, remove their keys.
    """

    def __init__(self, file: Path, *, share: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._share = share
        self._clock = clock
        self._signature = _signature(file)
        self._holders: dict[str, Holder] = {}
        self._take(read_keys(file))

    def find(self, presented: str) -> Holder | None:
        """Whose key `presented` is; None where it is nobody's. An unknown id takes as long as a wrong secret."""
        self._refresh()
        parts = _KEY_PATTERN.fullmatch(presented)
        if parts is None:
            return None
        holder = self._holders.get(parts[1])
        digest = _digest(parts[2], holder.key.salt if holder else _NOBODY[:32])
        return holder if hmac.compare_digest(digest, holder.key.digest if holder else _NOBODY) else None

    def _refresh(self) -> None:
        signature = _signature(self._file)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._take(read_keys(self._file))
        except InputError:
            logger.error("the file of keys cannot be read any more; the keys read last stay in force")

    def _take(self, keys: Sequence[Key]) -> None:
        def holder(key: Key) -> Holder:
            known = self._holders.get(key.id)
            return known if known and known.key == key else Holder(key, share=self._share, clock=self._clock)

        self._holders = {key.id: holder(key) for key in keys}


def _signature(file: Path) -> tuple[Any, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def require_guarded(host: str, *, keys: Path | None, guard: Guard) -> None:
    """Nothing; InputError where `host` is not the loopback and nothing asks callers who they are."""
    if keys is None and guard == "keys" and not is_loopback(host):
        raise InputError(
            f"--host {host} lets others in, and there are no keys. Add --keys FILE (preceptor keys add NAME --file "
            "FILE), keep 127.0.0.1, or say --behind-gateway where a gateway in front authenticates."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost may lead anywhere."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
