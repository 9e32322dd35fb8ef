"""When to start a replica again, decided purely from how its earlier starts ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Life:
    """How one start of a replica ended."""

    ended: float
    """Seconds on the supervisor's monotonic clock."""
    was_ready: bool
    reason: str
    slow: bool = False
    """Still alive, yet not ready when its time to start was over."""


@dataclass(frozen=True, slots=True)
class Next:
    """What to do after a life: start again after the delay; `failed` if that is a long shot."""

    failed: bool
    delay_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential backoff with jitter, and what counts as a crash loop."""

    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 30.0
    jitter: float = 0.2
    """Each delay is drawn from this share below to this share above its nominal length."""
    early_exits: int = 3
    """So many exits in a row before ever being ready are a crash loop ..."""
    window_seconds: float = 300.0
    exits_in_window: int = 5
    """... and so are so many exits of any kind within the window."""
    failed_delay_seconds: float = 60.0
    """A failed replica is tried again this seldom, never given up and never in a spin."""

    @property
    def memory(self) -> int:
        """How many past lives the decision looks at."""
        return max(self.early_exits, self.exits_in_window)

    def after(self, lives: Sequence[Life], random: Callable[[], float]) -> Next:
        """Decide what follows the last of `lives` (oldest first); `random` draws from [0, 1)."""
        last = lives[-1]
        early = lives[-self.early_exits :]
        recent = [life for life in lives if last.ended - life.ended <= self.window_seconds]
        # 1. Alive but never ready: starting it again at once would only take as long again.
        if last.slow:
            return self._fail(last.reason, random)
        # 2. It cannot even start.
        if len(early) == self.early_exits and not any(life.was_ready for life in early):
            return self._fail(
                f"ended {self.early_exits} times in a row before it was ready: {last.reason}",
                random,
            )
        # 3. It starts, and keeps dying.
        if len(recent) >= self.exits_in_window:
            return self._fail(
                f"ended {len(recent)} times within {self.window_seconds:.0f} s: {last.reason}",
                random,
            )
        nominal = self.first_delay_seconds * 2.0 ** (len(recent) - 1)
        return Next(
            False, self._spread(min(nominal, self.longest_delay_seconds), random), last.reason
        )

    def _fail(self, reason: str, random: Callable[[], float]) -> Next:
        return Next(True, self._spread(self.failed_delay_seconds, random), reason)

    def _spread(self, seconds: float, random: Callable[[], float]) -> float:
        return seconds * (1 + self.jitter * (2 * random() - 1))
