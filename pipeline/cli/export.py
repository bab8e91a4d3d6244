"""The command that exports a head with its encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import Command, emit, head_option, json_option, option, run_option, weights_option
from hoarfrost.cli.types import PathType


@click.command(cls=Command)
@run_option
@option(
    "--output", type=PathType(dir_okay=False), required=True, metavar="FILE",
    help="The model file, FILE.onnx or FILE.pt2. A model_card.md is written beside it.",
)  # fmt: skip
@option(
    "--format", "file_format", type=click.Choice(["onnx", "torch"]), required=True,
    help="onnx needs pip install 'hoarfrost[onnx]'. torch is a program of torch.export.",
)  # fmt: skip
@head_option
@weights_option
@json_option
def export(run: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Write a head and its encoder as one model, from uint8 RGB images to calibrated probabilities.

    Before the model is saved, its outputs are compared with torch's and with the run's own predictions. Class names,
    thresholds, fingerprint and preprocessing are in its metadata.

    Example:
      $ hoarfrost export --run runs/first --format onnx --output first.onnx
      mlp:256x6 with its encoder, ONNX, opset 20: first.onnx, 46.6 MB; 9.8 s
      probabilities differ by at most 1.1e-07 from torch's
      ...

    More examples:
      hoarfrost export --run runs/first --format torch --head mlp:512 --output wide.pt2 --json
    """
    from hoarfrost.cli.console import export_text
    from hoarfrost.inference.export import export_head

    summary = export_head(run, output, **options)
    emit(as_json, dataclasses.asdict(summary), export_text(summary), ("serve", "--run", run))
