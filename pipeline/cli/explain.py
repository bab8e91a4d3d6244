"""The command that explains what a head predicts for images."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import (
    CONTENT,
    Command,
    device_option,
    emit,
    head_option,
    json_option,
    max_pixels_option,
    option,
    run_option,
    weights_option,
)
from hoarfrost.cli.types import DataType, PathType


@click.command(cls=Command)
@click.argument("data", type=DataType())
@run_option
@option(
    "--output", type=PathType(), required=True, metavar="FOLDER",
    help="A new folder for the maps, and for explanations.json with the numbers.",
)  # fmt: skip
@head_option
@option(
    "--class", "class_name", metavar="LABEL",
    help="The class that the maps explain.  [default: with two classes the positive one, else the predicted one]",
)  # fmt: skip
@option(
    "--contact-sheet", type=PathType(dir_okay=False), metavar="FILE.png",
    help="Save up to 48 images beside their maps in one picture.",
)  # fmt: skip
@option(
    "--examples", "n_examples", type=click.IntRange(0, 10), default=5, show_default=True,
    group=CONTENT, help="How many of the nearest training images are shown.",
)  # fmt: skip
@weights_option
@device_option
@max_pixels_option
@json_option
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
    from hoarfrost.cli.console import explain_text, extraction_progress
    from hoarfrost.inference.explain import explain_dataset

    with extraction_progress() as show:
        summary = explain_dataset(data, output, on_progress=show, **options)
    emit(
        as_json,
        dataclasses.asdict(summary),
        explain_text(summary),
        ("export", "--run", options["run"], "--format", "onnx", "--output", "model.onnx"),
    )
