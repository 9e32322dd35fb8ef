"""Options that several commands share, and how they read the fleet."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from server import config as configuration
from server import fleet as fleets
from server.fleet import Fleet

config_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("fleet.toml"),
    show_default=True,
    envvar="FLEET_CONFIG",
    help="The fleet's file.",
)

log_level_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    envvar="FLEET_LOG_LEVEL",
    help="What goes to standard error. No level logs any text of prompts or answers.",
)


def read_fleet(config_path: Path) -> Fleet:
    """Return the resolved fleet.

    Raises:
        ConfigError: the file, or a specialist that it names, is wrong.
    """
    return fleets.resolve(configuration.load(config_path, os.environ))


def set_up_logging(level: str) -> None:
    """Log to standard error, one line per event."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    # httpx logs every call at INFO; the fleet's own metrics count them.
    logging.getLogger("httpx").setLevel("WARNING")
