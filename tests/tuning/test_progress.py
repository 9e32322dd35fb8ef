"""A log tells each stage's state now and then, and always its end."""

from __future__ import annotations

import io

from server.tuning.progress import ProgressLog
from server.tuning.train import Schedule, learning_rate


def test_a_log_has_the_first_and_last_step_of_every_stage() -> None:
    stream = io.StringIO()
    log = ProgressLog(stream)
    for stage in ("reading", "training"):
        for step in range(101):
            log(stage, step, 100, f"loss {100 - step}")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert "training" in lines[3]
    assert "100/100" in lines[3]
    assert "loss 0" in lines[3]


def test_the_learning_rate_rises_then_falls() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(schedule, step) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.1
