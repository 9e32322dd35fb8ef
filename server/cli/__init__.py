"""The `fleet` command."""

from __future__ import annotations

import click

from server import __version__
from server.cli.ask import ask
from server.cli.check import check
from server.cli.demo import demo
from server.cli.run import serve, up, workers
from server.errors import ConfigError


class FleetGroup(click.Group):
    """A group whose commands end with exit 2 and one line per fault when a file is wrong."""

    def invoke(self, context: click.Context) -> object:
        """Run the command; a ConfigError is a message, never a traceback."""
        try:
            return super().invoke(context)
        except ConfigError as error:
            for fault in error.faults:
                click.echo(f"{click.style('error:', fg='red', bold=True)} {fault}", err=True)
            context.exit(2)


@click.group(cls=FleetGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fleet")
def main() -> None:
    """Serve a fleet of small specialists, as fleet.toml says.

    `fleet up` runs everything on this machine; `fleet serve` and `fleet workers` run its two
    halves apart.
    """


for command in (up, serve, workers, check, ask, demo):
    main.add_command(command)
