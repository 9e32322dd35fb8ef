"""`fleet up`, `fleet serve`, `fleet workers`: the two planes, together or apart."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import uvicorn
import uvloop

from server.app import Draining, create_app
from server.cli.banner import banner, own_url
from server.cli.options import config_option, log_level_option, read_fleet, set_up_logging
from server.errors import ConfigError
from server.fleet import Fleet
from server.supervisor import parent
from server.supervisor.process import State
from server.supervisor.supervisor import Supervisor
from server.telemetry.metrics import Metrics

with_parent_option = click.option(
    "--die-with-parent",
    is_flag=True,
    help="Stop when the process that started this one is gone, killed outright included.",
)


@click.command()
@config_option
@log_level_option
@with_parent_option
def up(config_path: Path, log_level: str, die_with_parent: bool) -> None:
    """Run everything here: the workers that fleet.toml starts, and the gateway.

    Prints what to try when every task can be answered. Ctrl-C ends all of it.
    """
    _run(_up, config_path, log_level, die_with_parent)


@click.command()
@config_option
@log_level_option
@with_parent_option
def serve(config_path: Path, log_level: str, die_with_parent: bool) -> None:
    """Run the gateway alone, in front of workers that run elsewhere."""
    _run(_serve, config_path, log_level, die_with_parent)


@click.command()
@config_option
@log_level_option
@with_parent_option
def workers(config_path: Path, log_level: str, die_with_parent: bool) -> None:
    """Run the local workers alone, and keep them alive."""
    _run(_workers, config_path, log_level, die_with_parent)


def _run(
    main: Callable[[Fleet], Coroutine[Any, Any, None]],
    config_path: Path,
    log_level: str,
    with_parent: bool,
) -> None:
    if with_parent:
        parent.die_with_parent()
    set_up_logging(log_level)
    fleet = read_fleet(config_path)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(fleet))


async def _up(fleet: Fleet) -> None:
    metrics = Metrics(fleet)
    with _stop_signals() as stop:
        async with (
            _gateway(fleet, metrics, stop),
            Supervisor(fleet, observer=_Narrator(metrics)) as supervisor,
        ):
            await _announce(fleet, stop)
            await supervisor.run_until(stop)
            click.echo("\nstopping ...", err=True)


async def _serve(fleet: Fleet) -> None:
    with _stop_signals() as stop:
        async with _gateway(fleet, Metrics(fleet), stop):
            await _announce(fleet, stop)
            await stop.wait()


async def _workers(fleet: Fleet) -> None:
    if not any(worker.config.local for worker in fleet.workers.values()):
        raise ConfigError(
            [f"{fleet.config.path}: workers: all run elsewhere (`urls`, `dns`): none to start here"]
        )
    with _stop_signals() as stop:
        async with Supervisor(fleet, observer=_Narrator(None)) as supervisor:
            await supervisor.run_until(stop)
            click.echo("\nstopping ...", err=True)


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGINT or SIGTERM sets; while it is open they do nothing else."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the planes stop in our order, not in its."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _gateway(fleet: Fleet, metrics: Metrics, stop: asyncio.Event) -> AsyncGenerator[None]:
    """Serve HTTP for as long as the block runs; then let requests in flight finish."""
    gateway = fleet.config.gateway
    draining = Draining()
    app = create_app(fleet, metrics=metrics, draining=draining)
    listener = _listen(gateway.host, gateway.port)
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(gateway.drain_timeout_seconds),
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    serving.add_done_callback(lambda _: stop.set())  # a server that fell over ends the rest
    try:
        yield
    finally:
        draining.begun = True
        server.should_exit = True
        await serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            [
                f"gateway.port: cannot listen on {host}:{port}: {error.strerror}: choose another "
                f"(FLEET__GATEWAY__PORT={port + 1}, or PORT={port + 1} make run)"
            ]
        ) from None
    return listener


class _Narrator:
    """Says on standard error what becomes of the workers, and counts their restarts."""

    def __init__(self, metrics: Metrics | None) -> None:
        self._metrics = metrics
        self._started: dict[tuple[str, int], float] = {}

    def on_state(self, worker: str, replica: int, state: State, reason: str) -> None:
        """Print one line per change."""
        name, now = f"{worker}-{replica}", time.monotonic()
        match state:
            case State.STARTING:
                again = (worker, replica) in self._started
                self._started[worker, replica] = now
                if again and self._metrics is not None:
                    self._metrics.worker_restarts.labels(worker).inc()
                click.echo(f"{name}: {'starting again' if again else 'starting'} ...", err=True)
            case State.RUNNING:
                seconds = now - self._started[worker, replica]
                click.echo(f"{name}: up after {seconds:.0f} s", err=True)
            case State.BACKING_OFF | State.FAILED:
                colour = "yellow" if state is State.BACKING_OFF else "red"
                click.echo(f"{click.style(f'{name}: {state}', fg=colour)}: {reason}", err=True)
            case State.STOPPED:
                click.echo(f"{name}: stopped", err=True)


async def _announce(fleet: Fleet, stop: asyncio.Event) -> None:
    """Print what to try as soon as every task can be answered, or what is missing if it lasts."""
    url = own_url(fleet.config.gateway)
    started = time.monotonic()
    said = ""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=5) as http:
        while not stop.is_set():
            with contextlib.suppress(httpx.TransportError):
                health = await http.get("/health/tasks")
                if health.is_success:
                    click.echo(banner(fleet, time.monotonic() - started))
                    return
                said = _say_missing(health.json(), time.monotonic() - started, said)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.25)


# A start takes 20 to 30 s; what is still missing after this long deserves a line.
_PATIENCE_SECONDS = 60.0


def _say_missing(health: dict[str, Any], waited: float, said: str) -> str:
    """Print what the tasks wait for when that is new and has lasted; return what was printed."""
    if waited < _PATIENCE_SECONDS:
        return said
    reasons = {
        missing["reason"] for task in health["tasks"] for missing in task["missing"].values()
    }
    text = "\n".join(f"waiting: {reason}" for reason in sorted(reasons))
    if text != said:
        click.echo(text, err=True)
    return text
