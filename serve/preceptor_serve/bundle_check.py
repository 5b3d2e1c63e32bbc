"""What can be said of a bundle before anything heavy is loaded, and of a replica that did not load it.

Loading a bundle takes a process some seconds, nearly all of it imports, and a replica does so anyway. What is wrong
with a bundle's files is found here in milliseconds; what only arithmetic finds, the replica says, and `reason_of`
passes on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from preceptor import errors
from preceptor.bundle import describe
from preceptor.errors import InputError, PreceptorError, StageFailed

_JSON_FILES: Final = ("config.json", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS: Final = "model.safetensors"
_MEND: Final = "The bundle is damaged; export it again."
_SAID: Final = re.compile(r"^(?:ray\.exceptions\.\w+\()?preceptor(?:_serve)?(?:\.\w+)*\.(\w+): (.+)$", re.MULTILINE)


def require_readable(bundle: Path) -> None:
    """Nothing; InputError where a file of `bundle` is missing, no JSON, or not as long as it says."""
    describe(bundle)
    for name in _JSON_FILES:
        file = bundle / name
        try:
            json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not readable ({_first_line(error)}). {_MEND}") from error
    _require_whole(bundle / _WEIGHTS)


def _require_whole(file: Path) -> None:
    """Nothing; InputError unless the header of the safetensors `file` describes exactly the bytes that follow it."""
    try:
        with file.open("rb") as opened:
            num_header = int.from_bytes(opened.read(8), "little")
            size = file.stat().st_size
            if num_header > size - 8:
                raise ValueError(f"a header of {num_header:,} bytes in a file of {size:,}")
            header = json.loads(opened.read(num_header))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        expected = 8 + num_header + max(ends, default=0)
        if size != expected:
            raise ValueError(f"{size:,} bytes, its header says {expected:,}")
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{file}: not readable ({_first_line(error)}). {_MEND}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def error_in(account: str) -> tuple[str, str] | None:
    """(name, message) of the last of this project's errors that `account`, Serve's traceback, quotes."""
    said: list[tuple[str, str]] = _SAID.findall(account)
    return said[-1] if said else None


def reason_of(failure: Exception, bundle: Path) -> PreceptorError:
    """What the replica itself raised, where `failure`, Serve's account of it, quotes one of this project's errors."""
    said = error_in(str(failure))
    if said is None:
        return StageFailed(f"{bundle}: the application did not start; the Serve logs say why.")
    name, message = said
    kind = getattr(errors, name, StageFailed)
    return kind(message) if isinstance(kind, type) and issubclass(kind, PreceptorError) else StageFailed(message)
