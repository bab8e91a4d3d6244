"""The command that computes a run again: replay."""

from pathlib import Path

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import PathType


@click.command(cls=opts.Command)
@click.argument("run", type=PathType())
@click.option(
    "--retrain",
    is_flag=True,
    help="Train all heads again, with the recorded settings and seeds, and compare everything. It "
    "takes as long as `train`, and is exact on the same machine with the same versions.",
)
@opts.json_flag
@click.pass_context
def replay(ctx: click.Context, run: Path, retrain: bool, as_json: bool) -> None:
    """Compute a run again from its cache and its heads, without images, and compare every number with the recorded one.

    RUN is a folder that `train` or `evaluate` wrote. The digests of its files are checked first. Probabilities and
    figures may differ by 1e-6. What cannot be computed again is named. The exit status is 1 if something differs.

    Example:
      $ hoarfrost replay runs/first
      1,920 predictions computed again from the cache and the heads; largest difference 6e-16
      1,983 numbers of metrics.json compared
      no difference
      ...
    """
    from hoarfrost.cli.console.replay import document_of, replay_text
    from hoarfrost.replay.replaying import replay as computed_again

    found = computed_again(run, retrain=retrain)
    opts.emit(as_json, document_of(found), replay_text(found))
    ctx.exit(0 if found.is_equal else 1)
