"""Commands on trained heads: predict, heads."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import DataType, PathType, RuleType, ShareType


@click.command(cls=opts.Command)
@click.argument("data", type=DataType(), nargs=-1, required=True)
@opts.option("--run", "The run folder. Its selected head is used.", type=PathType(), metavar="DIR")
@opts.option("--head", "Another head of the run. Without --run: a head file.", metavar="NAME|FILE")
@opts.option(
    "--output", "The CSV for the images, one row per image. Patients go to FILE_patients.csv beside it.",
    type=PathType(dir_okay=False), required=True, metavar="FILE.csv",
)  # fmt: skip
@opts.option(
    "--per-patient", "How to join the probabilities of a patient's images.  [default: as in the run, else mean]",
    type=click.Choice(["mean", "max"]),
)  # fmt: skip
@opts.option(
    "--cache",
    "Keep the embeddings in this cache, so that another head needs no encoder pass.  [default: they are not kept]",
    type=PathType(dir_okay=False), metavar="FILE",
)  # fmt: skip
@opts.option(
    "--coverage", "Coverage of the conformal sets: the share of images whose set contains the true class.",
    group=opts.SCORING, type=ShareType(0, 1, min_open=True, max_open=True), default=0.9, metavar="SHARE",
)  # fmt: skip
@opts.option(
    "--prevalence", "Prevalence of the positive class where the images are from. Shifts the calibrated probabilities to it.",
    group=opts.SCORING, type=ShareType(0, 1, min_open=True, max_open=True), metavar="SHARE",
)  # fmt: skip
@opts.option(
    "--at", "Another operating point of the head: youden, sensitivity=0.95, specificity=0.95, or threshold=0.3.  "
    "[default: the one that the run chose]", group=opts.SCORING, type=RuleType(), metavar="RULE",
)  # fmt: skip
@opts.option(
    "--dataset", "Dataset of the cache, if DATA is one. Required if it has several.", group=opts.DATA, metavar="NAME"
)
@opts.max_pixels
@opts.keep_ids
@opts.weights
@opts.device
@opts.batch_size
@opts.workers
@opts.json_flag
def predict(
    data: tuple[Path | str, ...], run: Path | None, head: str | None, output: Path, cache: Path | None,
    per_patient: str | None, coverage: float, at: str | None, prevalence: float | None, weights: str | None,
    dataset: str | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Predict the images in DATA, with or without labels, and write one row per image to a CSV.

    DATA is what `extract` reads. It may also be a folder of images in any order, a CSV with paths alone, or one image. Or
    it is a cache of the head's encoder, or one cache for each of its encoders; then no image is opened.
    Weights, precision and window are those of the run. Probabilities are calibrated. The predicted class is the one at
    the operating point. Each image also gets a conformal set, and a flag if it is unlike the training images. Unreadable
    images get a row with the reason.

    Example:
      $ hoarfrost predict new/ --run runs/first --output new.csv
      3 images predicted by mlp:256x6, 0 unreadable; 1.1 s
      predicted at the operating point: 2 benign + normal, 1 malignant
      conformal sets (90% coverage): 3 images with 1 class
      unlike the training images: 0 (at a false alarm rate of 5%)
      images: new.csv

    More examples:
      hoarfrost predict new/ --run runs/first --head mlp:512 --cache new.h5 --output wide.csv --json
      hoarfrost predict new-resnet.h5 new-uni.h5 --run runs/both --output new.csv
      hoarfrost predict scan.dcm --head runs/first/heads/linear.safetensors --output scan.csv
    """
    from hoarfrost.cli.console.progress import extraction_progress
    from hoarfrost.cli.console.summaries import predict_text
    from hoarfrost.features.extraction.plan import ExtractOptions
    from hoarfrost.inference.predict import predict_dataset

    if run is None and head is None:
        raise click.UsageError("Name a run with --run DIR, or a head file with --head FILE.")
    with extraction_progress() as show:
        summary = predict_dataset(
            data, output, dataset=dataset, run=run, head=head, cache=cache, weights=weights, per_patient=per_patient,
            coverage=coverage, at=at, prevalence=prevalence, options=ExtractOptions(**options), on_progress=show,
        )  # fmt: skip
    following = ("explain", *data, "--run", run, "--output", "explained") if run is not None else ()
    opts.emit(as_json, dataclasses.asdict(summary), predict_text(summary), following)


@click.command(cls=opts.Command)
@click.argument("directory", metavar="DIR", type=PathType())
@opts.json_flag
def heads(directory: Path, as_json: bool) -> None:
    """List the heads of a run, with their scores and their files.

    Each file works without the run: `hoarfrost predict --head FILE`.

    Example:
      $ hoarfrost heads runs/first
         head       members  parameters  val AUC  test AUC  size     file
         logistic   5        5,130       0.996    0.998     0.12 MB  runs/first/heads/logistic.safetensors
      *  mean       25       2,641,970   0.996    0.998     5.49 MB  runs/first/heads/mean.safetensors
      * selected
    """
    from hoarfrost.cli.console.summaries import heads_text
    from hoarfrost.inference.predict import list_heads

    found = list_heads(directory)
    document = {"run": str(directory), "heads": [dataclasses.asdict(head) for head in found]}
    opts.emit(
        as_json, document, heads_text(found), ("predict", "NEW_IMAGES", "--run", directory, "--output", "new.csv")
    )
