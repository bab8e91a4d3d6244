"""The command that exports a head with its encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import PathType


@click.command(cls=opts.Command)
@opts.run
@opts.option(
    "--output", "The model file, FILE.onnx or FILE.pt2. A model_card.md is written beside it.",
    type=PathType(dir_okay=False), required=True, metavar="FILE",
)  # fmt: skip
@opts.option(
    "--format file_format", "onnx needs pip install 'hoarfrost[onnx]'. torch is a program of torch.export.",
    type=click.Choice(["onnx", "torch"]), required=True,
)  # fmt: skip
@opts.head
@opts.weights
@opts.json_flag
def export(run: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Write a head and its encoder as one model, from uint8 RGB images to calibrated probabilities.

    Before the model is saved, its outputs are compared with torch's and with the run's own predictions. Class names,
    thresholds, fingerprint and preprocessing are in its metadata.

    Example:
      $ hoarfrost export --run runs/first --format onnx --output first.onnx
      mlp:256x6 with its encoder, ONNX, opset 18: first.onnx, 46.6 MB; 29.2 s
      probabilities differ by at most 4.4e-10 from torch's
      ...

    More examples:
      hoarfrost export --run runs/first --format torch --head mlp:512 --output wide.pt2 --json
    """
    from hoarfrost.cli.console.summaries import export_text
    from hoarfrost.inference.export import export_head

    summary = export_head(run, output, **options)
    opts.emit(as_json, dataclasses.asdict(summary), export_text(summary), ("serve", "--run", run))
