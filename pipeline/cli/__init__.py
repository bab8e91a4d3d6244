"""The command line: each command parses, makes one call, prints. The sole user of click."""

import errno
import re
from typing import Any

import click

from hoarfrost import __version__
from hoarfrost.cli.caches import cache
from hoarfrost.cli.console.progress import as_message
from hoarfrost.cli.evaluate import evaluate
from hoarfrost.cli.explain import explain
from hoarfrost.cli.export import export
from hoarfrost.cli.heads import heads, predict
from hoarfrost.cli.images import demo, extract, inspect
from hoarfrost.cli.machine import doctor
from hoarfrost.cli.options import CommandGroup
from hoarfrost.cli.plan import plan
from hoarfrost.cli.replay import replay
from hoarfrost.cli.runs import compare, report, train
from hoarfrost.cli.serve import serve
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import HoarfrostError


class _Hoarfrost(CommandGroup):
    """Turns what is wrong with the user's input into a message and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HoarfrostError as error:
            raise click.ClickException(as_message(str(error))) from error
        except KeyboardInterrupt as error:
            raise click.ClickException("Interrupted. No file was left half-written.") from error
        except (
            OSError
        ) as error:  # a full disk or a lost mount is not a defect of the program; click handles a closed pipe
            if error.errno == errno.EPIPE:
                raise
            where = error.filename or "standard output"
            message = as_message(f"{where}: {error.strerror or error}. Fix that, and run the command again.")
            raise click.ClickException(message) from error


@click.group(cls=_Hoarfrost, context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hoarfrost")
def main() -> None:
    """Train classifiers of medical images in minutes, and report how far their scores can be trusted.

    `extract` runs a frozen {encoder} once over every image and caches the embeddings. `train` trains
    lightweight heads on the cache. `report` writes one HTML file. `predict` applies a head to new
    images.

    Example:
      hoarfrost extract images/ --cache images.h5
      hoarfrost train --cache images.h5 --run runs/first --positive malignant
      hoarfrost report --run runs/first
      hoarfrost predict new/ --run runs/first --output new.csv
    """
    from hoarfrost.cli.console.progress import show_warnings

    show_warnings()


def _keep_examples(command: click.Command) -> None:
    """Keep the lines of examples: click wraps a paragraph unless it begins with this sign."""
    if command.help:
        command.help = re.sub(r"\n( *)(Example|More examples):\n", "\n\\1\b\n\\1\\2:\n", command.help)
    for other in command.commands.values() if isinstance(command, click.Group) else ():
        _keep_examples(other)


for command in (
    extract,
    train,
    report,
    compare,
    evaluate,
    replay,
    predict,
    explain,
    export,
    serve,
    heads,
    plan,
    inspect,
    demo,
    cache,
    doctor,
):
    main.add_command(command)
main.help = (main.help or "").format(encoder=DEFAULT.title)
_keep_examples(main)
