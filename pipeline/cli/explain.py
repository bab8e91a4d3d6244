"""The command that explains what a head says of images."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import device_option, emit, json_option, max_pixels_option, run_option, weights_option
from hoarfrost.cli.types import DataType, PathType


@click.command()
@click.argument("data", type=DataType())
@run_option
@click.option(
    "--output", type=PathType(), required=True, metavar="FOLDER",
    help="Where the pictures go, a new folder; explanations.json in it has the numbers.",
)  # fmt: skip
@click.option("--head", metavar="NAME", help="Another head of the run than the selected one.")
@click.option(
    "--class", "class_name", metavar="LABEL",
    help="What the map is of.  [default: of two classes the positive one, of more what the image is called]",
)  # fmt: skip
@click.option(
    "--contact-sheet", type=PathType(dir_okay=False), metavar="FILE.png",
    help="Write up to 48 images beside their maps into one picture.",
)  # fmt: skip
@click.option(
    "--examples", "n_examples", type=click.IntRange(0, 10), default=5, show_default=True,
    help="How many of the nearest training images are shown.",
)  # fmt: skip
@weights_option
@device_option
@max_pixels_option
@json_option
def explain(data: Path | str, output: Path, as_json: bool, **options: Any) -> None:
    """Show what speaks for a class where in the images of DATA, and which training images are like them.

    DATA is what `predict` takes. Red speaks for the class, blue against it; the cells of a map, as many for any image,
    sum to the logarithm of the odds (of more than two classes: the logit against the mean of the others').

    Example:
      hoarfrost explain new/ --run runs/first --output explained/ --contact-sheet seen.png
      hoarfrost explain scan.dcm --run runs/first --head linear --class malignant --output scan-explained/ --json
    """
    from hoarfrost.cli.console import explain_text, extraction_progress
    from hoarfrost.inference.explain import explain_dataset

    with extraction_progress() as show:
        summary = explain_dataset(data, output, on_progress=show, **options)
    emit(as_json, dataclasses.asdict(summary), explain_text(summary))
