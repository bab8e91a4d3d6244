"""Commands on trained heads: predict, heads."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import device_option, emit, json_option, max_pixels_option, weights_option
from hoarfrost.cli.types import DataType, PathType, ShareType


@click.command()
@click.argument("data", type=DataType())
@click.option("--run", type=PathType(), metavar="DIR", help="The run folder whose head is used, the selected one.")
@click.option("--head", metavar="NAME|FILE", help="Another head of the run; or without --run, the file of a head.")
@click.option(
    "--output", type=PathType(dir_okay=False), required=True, metavar="FILE.csv",
    help="Where the images' rows go; those of patients go beside it, to FILE_patients.csv.",
)  # fmt: skip
@click.option(
    "--cache", type=PathType(dir_okay=False), metavar="FILE",
    help="Keep embeddings here, so that another head costs no backbone pass.  [default: they are not kept]",
)  # fmt: skip
@click.option(
    "--per-patient", type=click.Choice(["mean", "max"]),
    help="Join a patient's probabilities by their mean or the largest.  [default: as the run did, else mean]",
)  # fmt: skip
@click.option(
    "--coverage", type=ShareType(0, 1, min_open=True, max_open=True), default=0.9, show_default=True, metavar="SHARE",
    help="Of the conformal sets: the share of images whose set is to hold the true class.",
)  # fmt: skip
@weights_option
@device_option
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images in a batch.  [default: 32; on a GPU 256]")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads that read and decode.  [default: the CPUs]")
@max_pixels_option
@click.option("--keep-ids", is_flag=True, help="Keep DICOM's patient ids as they are, in place of a salted hash.")
@json_option
def predict(
    data: Path | str, run: Path | None, head: str | None, output: Path, cache: Path | None, per_patient: str | None,
    coverage: float, weights: str | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Predict the images of DATA, labelled or not: a row each, those that cannot be read with their reason.

    DATA is what `extract` takes, also a folder of images in any order, a CSV with paths alone, or one image.
    Weights, precision and window are the run's. Probabilities are calibrated; the class is that at the operating
    point; each image gets a conformal set, and whether it is unlike all that the head learnt from.

    Example:
      hoarfrost predict new/ --run runs/first --output new.csv
      hoarfrost predict new/ --run runs/first --head mlp:512 --cache new.h5 --output wide.csv --json
      hoarfrost predict scan.dcm --head runs/first/heads/linear.safetensors --output scan.csv
    """
    from hoarfrost.cli.console import extraction_progress, predict_text
    from hoarfrost.features.extraction.plan import ExtractOptions
    from hoarfrost.inference.predict import predict_dataset

    if run is None and head is None:
        raise click.UsageError("Name a run with --run DIR, or the file of a head with --head FILE.")
    with extraction_progress() as show:
        summary = predict_dataset(
            data, output, run=run, head=head, cache=cache, weights=weights, per_patient=per_patient,
            coverage=coverage, options=ExtractOptions(**options), on_progress=show,
        )  # fmt: skip
    emit(as_json, dataclasses.asdict(summary), predict_text(summary))


@click.command()
@click.argument("directory", metavar="DIR", type=PathType())
@json_option
def heads(directory: Path, as_json: bool) -> None:
    """List the heads of a run: how good they are, and their files, each of which works alone with `predict --head FILE`.

    Example:
      hoarfrost heads runs/first
    """
    from hoarfrost.cli.console import heads_text
    from hoarfrost.inference.predict import list_heads

    found = list_heads(directory)
    emit(as_json, {"run": str(directory), "heads": [dataclasses.asdict(head) for head in found]}, heads_text(found))
