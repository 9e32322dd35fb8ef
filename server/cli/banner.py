"""What `fleet up` prints when the fleet is ready."""

from __future__ import annotations

import json
import shlex

import click

from server.config import GatewayConfig
from server.fleet import Fleet

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def own_url(gateway: GatewayConfig) -> str:
    """Return the URL by which this machine reaches the gateway."""
    host = _EVERYWHERE.get(gateway.host, gateway.host)
    return f"http://[{host}]:{gateway.port}" if ":" in host else f"http://{host}:{gateway.port}"


def banner(fleet: Fleet, seconds: float) -> str:
    """Return the tasks, a `curl` for each, and the URL."""
    url = own_url(fleet.config.gateway)
    lines = [f"\n{click.style('The fleet is ready', bold=True)} after {seconds:.0f} s: {url}\n"]
    for name, variants in fleet.variants.items():
        card = variants[0].specialist.card
        described = fleet.config.tasks[name].description or card.description
        lines.append(f"  {click.style(name, bold=True)}  {described}")
        example = card.examples[0] if card.examples else "..."
        body = json.dumps({"input": example}, ensure_ascii=False)
        if card.kind == "generate":
            body = f'{body[:-1]}, "stream": true}}'
        lines.append(f"    curl -sN {url}/v1/tasks/{name} -d {shlex.quote(body)}\n")
    lines.append(f"  Try them on a page: {url}/   metrics: {url}/metrics   Ctrl-C ends it.")
    return "\n".join(lines)
