"""`fleet ask`: one question to a running gateway, from a shell."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import httpx

from server import config as configuration
from server.cli.banner import own_url
from server.cli.options import config_option


@click.command()
@click.argument("task")
@click.argument("text", required=False)
@click.option(
    "--field", "-f", "fields", multiple=True, metavar="NAME=VALUE",
    help="A field of a task whose input is an object; repeat for each.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
@click.option("--variant", help="Ask this variant, whatever the weights say.")
@click.option("--deadline-ms", type=float, help="Give up after this long.")
@click.option("--url", envvar="FLEET_URL", help="The gateway; by default fleet.toml's own.")
@config_option
def ask(
    task: str,
    text: str | None,
    fields: tuple[str, ...],
    as_json: bool,
    variant: str | None,
    deadline_ms: float | None,
    url: str | None,
    config_path: Path,
) -> None:
    """Ask TASK about TEXT and print the answer.

    TEXT "-" is read from standard input. A task whose input has fields takes them as
    `-f name=value`. Text tasks are streamed as they are written.

    \b
      fleet ask sentiment "Best kettle I ever bought."
      fleet ask bedtime-story -f hero="a shy hedgehog" -f place="a garden" ...
    """
    _check_utf8(task, "TASK")
    body: dict[str, Any] = {"input": _input(text, fields)}
    if variant is not None:
        _check_utf8(variant, "--variant")
        body["variant"] = variant
    if deadline_ms is not None:
        if not math.isfinite(deadline_ms):
            raise click.UsageError("--deadline-ms: write a number of milliseconds")
        body["deadline_ms"] = deadline_ms
    gateway = url or _own_url(config_path)
    # The gateway ends a request by its own deadline; this bound is for one that hangs.
    try:
        http = httpx.Client(base_url=gateway, timeout=httpx.Timeout(620, connect=5))
    except httpx.InvalidURL as error:
        raise click.UsageError(f"--url {gateway!r} is no URL: {error}") from None
    with http:
        try:
            if not as_json and _is_text_task(http, task):
                _print_stream(http, task, {**body, "stream": True})
                return
            answer = _checked(http.post(f"/v1/tasks/{_segment(task)}", json=body), "output")
        except httpx.TransportError as error:
            raise click.ClickException(
                f"no gateway answers at {gateway} ({error}): start one with `fleet up`"
            ) from None
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False) if as_json else _plain(answer))


def _input(text: str | None, fields: tuple[str, ...]) -> str | dict[str, str]:
    if (text is None) == (not fields):
        raise click.UsageError("give either TEXT or one -f NAME=VALUE per field")
    if fields:
        pairs = dict(field.partition("=")[::2] for field in fields)
        if bad := [field for field in fields if "=" not in field]:
            raise click.UsageError(f"-f {bad[0]!r}: write NAME=VALUE")
        for name, value in pairs.items():
            _check_utf8(name + value, "-f")
        return pairs
    assert text is not None
    try:
        value = sys.stdin.read() if text == "-" else text
    except UnicodeDecodeError:
        raise click.UsageError("TEXT is not UTF-8") from None
    _check_utf8(value, "TEXT")
    return value


def _check_utf8(value: str, what: str) -> None:
    # A shell's stray bytes arrive as lone surrogates, which no JSON can carry.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"{what} is not UTF-8") from None


def _own_url(config_path: Path) -> str:
    return own_url(configuration.load(config_path, os.environ).gateway)


def _segment(task: str) -> str:
    # The name is one segment of a path, whatever is in it.
    return httpx.URL("/", params={"": task}).query.decode()[1:].replace("+", "%20")


def _is_text_task(http: httpx.Client, task: str) -> bool:
    described = _checked(http.get(f"/v1/tasks/{_segment(task)}"), "kind")
    return bool(described["kind"] == "generate")


def _checked(response: httpx.Response, key: str) -> Any:
    """Return the object with `key` in a response, or end with its error's message."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict) and key in body:
        return body
    if not response.is_success and isinstance(body, dict) and isinstance(body.get("error"), dict):
        raise click.ClickException(_message(body))
    raise click.ClickException(
        f"HTTP {response.status_code}, and not in the gateway's words: is "
        f"{response.request.url.copy_with(raw_path=b'/')} the gateway?"
    )


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error", {})
    return f"{error.get('code', 'error')}: {error.get('message', 'no message')}"


def _print_stream(http: httpx.Client, task: str, body: Mapping[str, Any]) -> None:
    with http.stream("POST", f"/v1/tasks/{_segment(task)}", json=body) as response:
        if not response.is_success:
            response.read()
            _checked(response, "output")
        ended = False
        for event, data in _events(response):
            if event == "delta":
                click.echo(data["text"], nl=False)
            elif event == "error":
                click.echo()
                raise click.ClickException(_message(data))
            ended = ended or event == "answer"
        click.echo()
        if not ended:
            raise click.ClickException("the answer broke off")


def _events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    event = ""
    for line in _lines(response):
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, json.loads(value)


def _lines(response: httpx.Response) -> Iterator[str]:
    # Not `iter_lines`: it also ends a line at U+2028 and its kin, which JSON holds as they are.
    rest = ""
    for text in response.iter_text():
        *lines, rest = (rest + text).split("\n")
        yield from lines


def _plain(answer: Mapping[str, Any]) -> str:
    output = answer["output"]
    if "confidence" in output:
        return f"{output['label']} ({output['confidence']:.1%})"
    if "labels" in output:
        return ", ".join(output["labels"]) or "(none)"
    if "data" in output:
        return json.dumps(output["data"], indent=2, ensure_ascii=False)
    return str(output["text"])
