"""The line of a log that says what went wrong is found; earlier logs are kept for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.supervisor import log

PREFIX = "(EngineCore pid=42) ERROR 11-21 10:06:10 [core.py:1099:] "
CASES = {
    "a plain traceback": (
        'INFO: starting\nTraceback (most recent call last):\n  File "x.py", line 1\n'
        "ModuleNotFoundError: No module named 'xgrammar'\n",
        "ModuleNotFoundError: No module named 'xgrammar'",
    ),
    "an engine's prefixed traceback, and the server's about it": (
        f"{PREFIX}Traceback (most recent call last):\n{PREFIX}ValueError: No free memory\n"
        "(APIServer pid=7) Traceback (most recent call last):\n"
        "(APIServer pid=7) RuntimeError: Engine core initialization failed.\n",
        "ValueError: No free memory",
    ),
    "only hearsay": (
        "RuntimeError: Engine core initialization failed. See root cause above.\n[rank0] bye\n",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ),
    "pydantic, which says it a line later": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, no such model [type=value_error]\n    For further information\n",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig "
        "Value error, no such model [type=value_error] For further information",
    ),
    "a wrong flag": (
        "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --nonsense\n",
        "api_server.py: error: unrecognized arguments: --nonsense",
    ),
    "no exception": (f"one\n{PREFIX}Loading weights took 3 s\n\n", "Loading weights took 3 s"),
    "an exception that is only spoken of": ("we handle ValueError: fine\nend\n", "end"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_last_words(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "base-0.log"
    path.write_text(text)
    assert log.last_words(path) == expected


def test_a_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert log.last_words(tmp_path / "base-0.log") == ""


def test_a_huge_log_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "base-0.log"
    path.write_bytes(b"KeyError: early\n" + b"\xff" * log.TAIL_BYTES + b"\nOSError: late\n")
    assert log.last_words(path) == "OSError: late"


def test_the_last_few_logs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "base-0.log"
    for start in range(log.KEPT + 3):
        log.rotate(path)
        path.write_text(str(start))
    kept = {one.name: one.read_text() for one in path.parent.iterdir()}
    assert kept == {
        "base-0.log": "5",
        "base-0.log.1": "4",
        "base-0.log.2": "3",
        "base-0.log.3": "2",
    }
