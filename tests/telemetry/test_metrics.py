"""Every outcome is counted once, and no caller can make a series of his own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import config, errors, fleet
from server.errors import RequestError
from server.fleet import Fleet
from server.telemetry.cost import Books
from server.telemetry.metrics import NO_TASK, NO_VARIANT, STAGES, Metrics, Record
from server.telemetry.replicas import ReplicaRecorder
from server.types import Answer, Classified, Generated, Output
from tests.test_errors import subclasses
from tests.tiny_fleet import write_fleet

CONTRACT = {
    "fleet_requests_total": {"task", "variant", "outcome"},
    "fleet_request_seconds_count": {"task", "variant"},
    "fleet_stage_seconds_count": {"stage"},
    "fleet_in_flight": {"task"},
    "fleet_tokens_total": {"task", "variant", "direction"},
    "fleet_cost_dollars_total": {"task", "variant"},
    "fleet_idle_cost_dollars_total": {"worker"},
    "fleet_confidence_count": {"task", "variant"},
    "fleet_replica_ready": {"worker", "replica"},
    "fleet_replica_in_flight": {"worker", "replica"},
    "fleet_worker_restarts_total": {"worker"},
}
"""The names and labels that dashboards rely on, as far as they are there from the start."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Resolve the tiny fleet."""
    return fleet.resolve(config.load(write_fleet(tmp_path_factory.mktemp("fleet"), ""), {}))


@pytest.fixture
def metrics(tiny: Fleet) -> Metrics:
    return Metrics(tiny)


def samples(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield what a scrape shows: name, labels, value."""
    for family in text_string_to_metric_families(metrics.scrape()[0].decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def outcome(metrics: Metrics, task: str, variant: str, name: str) -> float | None:
    return value(metrics, "fleet_requests_total", task=task, variant=variant, outcome=name)


def answer(output: Output) -> Answer:
    return Answer("inf_1", "colour", "stable", "colour@00000000", output)


def ask(metrics: Metrics, error: BaseException | None = None) -> None:
    """Let a request of a known task end in `error`, or well."""
    with metrics.request() as record:
        record.task, record.variant = "colour", "stable"
        if error is not None:
            raise error
        record.answer = answer(Generated("x", "stop"))


def test_every_instrument_of_the_contract_is_there_under_its_name_and_labels(
    metrics: Metrics,
) -> None:
    metrics.replica_ready.labels("base", "one").set(1)
    metrics.replica_in_flight.labels("base", "one").set(0)
    shown: dict[str, set[str]] = {name: set(labels) for name, labels, _ in samples(metrics)}
    assert {name: shown.get(name) for name in CONTRACT} == CONTRACT


def test_a_good_answer_is_ok(metrics: Metrics) -> None:
    assert outcome(metrics, "colour", "stable", "ok") == 0, "there before the first request"
    ask(metrics)
    assert outcome(metrics, "colour", "stable", "ok") == 1
    assert value(metrics, "fleet_request_seconds_count", task="colour", variant="stable") == 1


@pytest.mark.parametrize("kind", subclasses(RequestError))
def test_an_error_is_counted_under_its_code(metrics: Metrics, kind: type[RequestError]) -> None:
    with pytest.raises(kind):
        ask(metrics, kind("no"))
    assert outcome(metrics, "colour", "stable", kind.code) == 1
    assert outcome(metrics, "colour", "stable", "ok") == 0


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
def test_a_caller_who_leaves_has_abandoned_the_request(
    metrics: Metrics, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        ask(metrics, error)
    assert outcome(metrics, "colour", "stable", "abandoned") == 1


async def test_a_cancelled_task_is_counted_as_abandoned_and_is_no_longer_in_flight(
    metrics: Metrics,
) -> None:
    started = asyncio.Event()

    async def request() -> None:
        with metrics.request() as record, metrics.working_on("colour"):
            record.task = "colour"
            started.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(request())
    await started.wait()
    assert value(metrics, "fleet_in_flight", task="colour") == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert value(metrics, "fleet_in_flight", task="colour") == 0
    assert outcome(metrics, "colour", NO_VARIANT, "abandoned") == 1


def test_a_fault_of_ours_is_an_internal_error(metrics: Metrics) -> None:
    with pytest.raises(ZeroDivisionError):
        ask(metrics, ZeroDivisionError())
    assert outcome(metrics, "colour", "stable", "internal_error") == 1


def test_what_callers_make_up_never_becomes_a_label(metrics: Metrics, tiny: Fleet) -> None:
    before = sum(1 for _ in samples(metrics))
    for n in range(50):
        with pytest.raises(RequestError), metrics.request():
            raise errors.UnknownTask(f"there is no task 'made-up-{n}'", param="task")
    shown = list(samples(metrics))
    assert not any("made-up" in text for _, labels, _ in shown for text in labels.values())
    assert {labels["task"] for _, labels, _ in shown if "task" in labels} == {
        *tiny.variants,
        NO_TASK,
    }
    # One outcome and one histogram of its own for all of them.
    series = {(name, *sorted(labels.items())) for name, labels, _ in shown}
    assert len(series) - before <= 1 + len(metrics.request_seconds._upper_bounds) + 2
    assert outcome(metrics, NO_TASK, NO_VARIANT, "unknown_task") == 50


def test_an_answers_stages_and_confidence_are_observed(metrics: Metrics) -> None:
    with metrics.request() as record:
        record.task, record.variant = "colour", "stable"
        with record.stage("prompt"):
            pass
        record.add("worker", 0.25)
        record.add("worker", 0.5)
        record.answer = answer(Classified("red", 0.93, {"red": 0.93, "blue": 0.07}))
    assert value(metrics, "fleet_stage_seconds_count", stage="prompt") == 1
    assert value(metrics, "fleet_stage_seconds_count", stage="worker") == 1
    assert value(metrics, "fleet_stage_seconds_sum", stage="worker") == 0.75
    arm = {"task": "colour", "variant": "stable"}
    assert value(metrics, "fleet_confidence_sum", **arm) == 0.93


def test_only_answered_requests_show_where_their_time_went(metrics: Metrics) -> None:
    def fail() -> None:
        with metrics.request() as record:
            record.add("worker", 9)
            raise errors.WorkerError("broken")

    with pytest.raises(errors.WorkerError):
        fail()
    assert {value(metrics, "fleet_stage_seconds_count", stage=stage) for stage in STAGES} == {0}


def test_a_stage_is_timed_also_when_it_fails_and_adds_up_when_it_runs_twice() -> None:
    ticks = iter([1.0, 1.5, 10.0, 12.0])
    record = Record(_clock=lambda: next(ticks))
    with record.stage("answer"):
        pass
    with pytest.raises(errors.InvalidOutput), record.stage("answer"):
        raise errors.InvalidOutput("broken")
    assert record.stages == {"answer": 2.5}


def test_what_a_call_took_is_counted_by_direction(metrics: Metrics) -> None:
    metrics.spent("colour", "stable", 21, 1, 0.5)
    metrics.spent("colour", "stable", 9, 2, 0.25)
    arm = {"task": "colour", "variant": "stable"}
    assert value(metrics, "fleet_tokens_total", **arm, direction="in") == 30
    assert value(metrics, "fleet_tokens_total", **arm, direction="out") == 3
    assert value(metrics, "fleet_cost_dollars_total", **arm) == 0.75


def test_two_gateways_in_one_process_have_instruments_of_their_own(
    metrics: Metrics, tiny: Fleet
) -> None:
    ask(Metrics(tiny))
    assert outcome(metrics, "colour", "stable", "ok") == 0


def test_a_replica_is_shown_until_it_is_gone_and_its_idle_dollars_stay(metrics: Metrics) -> None:
    now = [0.0]
    recorder = ReplicaRecorder(metrics, Books(lambda: now[0]), {"base": 3600.0})
    replica = {"worker": "base", "replica": "127.0.0.1:8100"}
    recorder.replica_ready("base", "127.0.0.1:8100", True)
    recorder.replica_in_flight("base", "127.0.0.1:8100", 4)
    assert value(metrics, "fleet_replica_ready", **replica) == 1
    assert value(metrics, "fleet_replica_in_flight", **replica) == 4
    now[0] = 7.0
    recorder.replica_gone("base", "127.0.0.1:8100")
    assert value(metrics, "fleet_replica_ready", **replica) is None
    assert value(metrics, "fleet_replica_in_flight", **replica) is None
    assert value(metrics, "fleet_idle_cost_dollars_total", worker="base") == 7
