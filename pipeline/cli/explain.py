"""The command that explains what a head predicts for images."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import DataType, PathType


@click.command(cls=opts.Command)
@click.argument("data", type=DataType())
@opts.run
@opts.option(
    "--output", "A new folder for the maps, and for explanations.json with the numbers.",
    type=PathType(), required=True, metavar="FOLDER",
)  # fmt: skip
@opts.head
@opts.option(
    "--class class_name",
    "The class that the maps explain.  [default: with two classes the positive one, else the predicted one]",
    metavar="LABEL",
)  # fmt: skip
@opts.option(
    "--contact-sheet", "Save up to 48 images beside their maps in one picture.",
    type=PathType(dir_okay=False), metavar="FILE.png",
)  # fmt: skip
@opts.option(
    "--examples n_examples", "How many of the nearest training images are shown.",
    group=opts.CONTENT, type=click.IntRange(0, 10), default=5,
)  # fmt: skip
@opts.weights
@opts.device
@opts.max_pixels
@opts.json_flag
def explain(data: Path | str, output: Path, as_json: bool, **options: Any) -> None:
    """Show which parts of each image in DATA speak for a class, and the most similar training images.

    DATA is what `predict` reads. Red areas speak for the class, blue areas against it. The cells of a map add up to the
    log odds of the class. With more than two classes, they add up to its logit minus the mean of the other logits.

    Example:
      $ hoarfrost explain new/ --run runs/first --output explained/
      3 of 3 images explained by mlp:256x6: explained
        0.png: malignant 0.005, predicted benign + normal; nearest: 4 benign, 1 malignant
      ...

    More examples:
      hoarfrost explain scan.dcm --run runs/first --head linear --class malignant --output scan-explained/ --json
    """
    from hoarfrost.cli.console.progress import extraction_progress
    from hoarfrost.cli.console.summaries import explain_text
    from hoarfrost.inference.explain import explain_dataset

    with extraction_progress() as show:
        summary = explain_dataset(data, output, on_progress=show, **options)
    opts.emit(
        as_json,
        dataclasses.asdict(summary),
        explain_text(summary),
        ("export", "--run", options["run"], "--format", "onnx", "--output", "model.onnx"),
    )
