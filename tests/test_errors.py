"""The exception tree, its drawing, and what each error looks like over the wire."""

from __future__ import annotations

import re

import pytest

from server import errors
from server.api.errors import STATUS, body_of, headers_of, status_of
from server.errors import FleetError, RequestError

CONTRACT: dict[str, set[int]] = {
    "invalid_request": {400, 413, 422},
    "input_too_long": {422},
    "unauthenticated": {401},
    "forbidden": {403},
    "unknown_task": {404},
    "unknown_variant": {404},
    "not_found": {404},
    "method_not_allowed": {405},
    "rate_limited": {429},
    "over_budget": {429},
    "overloaded": {429},
    "no_ready_replica": {503},
    "worker_error": {502},
    "deadline_exceeded": {504},
    "invalid_output": {502},
    "no_matching_task": {422},
    "internal_error": {500},
}
"""Code -> statuses: what callers rely on."""


def subclasses(kind: type[RequestError]) -> list[type[RequestError]]:
    """Return every class under `kind`, each before its own subclasses."""
    return [one for child in kind.__subclasses__() for one in (child, *subclasses(child))]


every_error = pytest.mark.parametrize("kind", subclasses(RequestError))


@every_error
def test_every_error_has_a_code_and_a_status_of_the_contract(kind: type[RequestError]) -> None:
    assert kind in STATUS, "each class has a row of its own: a parent's would be a guess"
    assert STATUS[kind] in CONTRACT[kind.code]


def test_the_table_has_no_row_for_a_class_that_is_gone() -> None:
    assert set(STATUS) == set(subclasses(RequestError))


@every_error
def test_the_envelope_is_the_contracts(kind: type[RequestError]) -> None:
    error = kind("What to do.", param="input")
    envelope = body_of(error, "req_1")
    assert set(envelope) == {"error"}
    assert set(envelope["error"]) == {"code", "message", "type", "param", "request_id"}
    assert envelope["error"]["code"] == kind.code
    assert envelope["error"]["message"] == "What to do."
    assert envelope["error"]["param"] == "input"
    assert envelope["error"]["request_id"] == "req_1"
    ours = status_of(error) >= 500 or status_of(error) == 429
    assert envelope["error"]["type"] == ("server_error" if ours else "invalid_request_error")


@every_error
def test_only_errors_that_may_pass_are_retryable(kind: type[RequestError]) -> None:
    if kind.retryable:
        assert STATUS[kind] in {429, 502, 503}


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (2.0, "2"), (2.1, "3")])
def test_retry_after_is_whole_seconds_and_at_least_one(seconds: float, header: str) -> None:
    error = errors.Overloaded("Full.", retry_after_seconds=seconds)
    assert headers_of(error) == {"Retry-After": header}


def test_without_a_time_there_is_no_retry_after() -> None:
    assert headers_of(errors.WorkerError("Broken.")) == {}


def test_a_config_error_says_one_line_per_fault() -> None:
    error = errors.ConfigError(["one", "two"])
    assert error.faults == ("one", "two")
    assert str(error) == "one\ntwo"


def drawn() -> dict[str, str]:
    """Return the tree in the docstring: class -> its parent."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"((?:[│├└─ ]{4})*)([A-Z]\w+)(?: .*)?", line)
        if match is None:
            continue
        indent, name = match.groups()
        depth = len(indent) // 4
        if depth > len(path):
            continue
        path[depth:] = [name]
        if depth or name == "FleetError":
            found[name] = path[depth - 1] if depth else "Exception"
    return found


def test_the_tree_drawn_is_the_tree() -> None:
    real = {
        one.__name__: one.__bases__[0].__name__
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, FleetError)
    }
    assert drawn() == real


@every_error
def test_the_codes_drawn_are_the_codes(kind: type[RequestError]) -> None:
    drawing = errors.__doc__ or ""
    line = next(one for one in drawing.splitlines() if re.search(rf"─ {kind.__name__}\b", one))
    if "code" in vars(kind):
        assert line.split(kind.__name__)[1].split()[0] == kind.code
    else:
        assert kind.code not in line.split(), "a code that is inherited is drawn at the parent"
