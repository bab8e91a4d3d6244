"""The command that exports a head with its backbone."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import emit, json_option, run_option, weights_option
from hoarfrost.cli.types import PathType


@click.command()
@run_option
@click.option(
    "--output", type=PathType(dir_okay=False), required=True, metavar="FILE",
    help="Where the model goes: FILE.onnx or FILE.pt2; its model_card.md goes beside it.",
)  # fmt: skip
@click.option(
    "--format", "file_format", type=click.Choice(["onnx", "torch"]), required=True,
    help="ONNX (needs the extra onnx), or torch.export's program.",
)  # fmt: skip
@click.option("--head", metavar="NAME", help="Another head of the run than the selected one.")
@weights_option
@json_option
def export(run: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Write a head and its backbone as one model: from uint8 RGB images to calibrated probabilities.

    It is tried before it is left behind, against torch and against the run's own predictions; names of classes,
    thresholds, fingerprint and preprocessing are in its metadata.

    Example:
      hoarfrost export --run runs/first --format onnx --output model/first.onnx
      hoarfrost export --run runs/first --format torch --head mlp:512 --output wide.pt2 --json
    """
    from hoarfrost.cli.console import export_text
    from hoarfrost.inference.export import export_head

    summary = export_head(run, output, **options)
    emit(as_json, dataclasses.asdict(summary), export_text(summary))
