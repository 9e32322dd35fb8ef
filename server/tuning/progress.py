"""Saying how far a long job is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Never, Protocol, TextIO

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0


class Progress(Protocol):
    """What training, evaluation and building call as they go."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` steps of `stage` are finished; `note` holds the figures."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Say nothing."""


class ProgressLog:
    """Writes each stage with its step, note and remaining time to a stream."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._stage = ""
        self._began = 0.0
        self._last_line = 0.0
        self._bar: tqdm[Never] | None = None

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show the state of one stage; a new stage name starts a new bar."""
        if stage != self._stage:
            self.close()
            self._stage, self._began, self._last_line = stage, time.monotonic(), 0.0
        if self._stream.isatty():
            self._draw(done, total, note)
        else:
            self._write(done, total, note)

    def close(self) -> None:
        """End the current bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._stage, file=self._stream, dynamic_ncols=True)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def _write(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done < total and now - self._last_line < LINE_EVERY_SECONDS:
            return
        self._last_line = now
        meter = tqdm.format_meter(
            done, total, now - self._began, prefix=self._stage, postfix=note, ncols=0
        )
        self._stream.write(meter + "\n")
        self._stream.flush()
