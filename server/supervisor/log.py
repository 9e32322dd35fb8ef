"""A replica's log files: one a start, the last few kept, and the line that says what went wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

KEPT = 3
"""Logs of earlier starts: `<name>.log.1` is the latest of them."""
TAIL_BYTES = 65_536
LONGEST_LINE = 300

# "(EngineCore pid=7) ERROR 11-21 10:06:10 [core.py:1:] " before what vLLM has to say.
_PREFIX = re.compile(
    r"^(?:\([^)]* pid=\d+\) ?)?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b(?::|$)")
_REFUSED_ARGUMENT = re.compile(r"^\S+: error: ")
# What vLLM's server says when a process under it failed: true, and no help.
_SECOND_HAND = ("Engine core initialization failed", "See root cause above", "SystemExit")


def rotate(path: Path) -> None:
    """Make room for a new log at `path`; earlier ones move on to `.1`, `.2` and so on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(KEPT, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.replace(older)


def last_words(path: Path) -> str:
    """Return the line of the log that best says what went wrong, or nothing.

    That is the last exception that is not merely about another one, else the last line.
    """
    lines = [_PREFIX.sub("", line).rstrip() for line in _tail(path)]
    told = [i for i, line in enumerate(lines) if _tells(line)]
    first_hand = [i for i in told if not any(said in lines[i] for said in _SECOND_HAND)]
    if first_hand or told:
        at = (first_hand or told)[-1]
        # Pydantic puts what matters on the lines after the exception's.
        more = lines[at + 1 : at + 3] if "validation error" in lines[at] else []
        return " ".join([lines[at], *(line.strip() for line in more)])[:LONGEST_LINE]
    return next((line for line in reversed(lines) if line), "")[:LONGEST_LINE]


def _tells(line: str) -> bool:
    return bool(_RAISED.match(line) or _REFUSED_ARGUMENT.match(line))


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
