"""Commands on images: extract, inspect, demo."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import (
    cache_option,
    device_option,
    emit,
    engine_options,
    json_option,
    max_pixels_option,
    window_option,
)
from hoarfrost.cli.types import DataType, PathType, ShareType, SizeType


@click.command()
@click.argument("data", type=DataType())
@cache_option
@click.option("--name", help="The dataset's name in the cache; by default that of its folder or file.")
@click.option(
    "--weights", default="imagenet", show_default=True, metavar="imagenet|PATH|random:SEED|auto",
    help="The backbone's weights: torchvision's, a checkpoint of your own (.pth, .safetensors), untrained ones, "
    "or imagenet where it can be had and else random:0.",
)  # fmt: skip
@device_option
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "bfloat16", "int8"]), default="auto", show_default=True,
    help="What to compute in; auto is bfloat16 where the device multiplies it natively, else float32; "
    "int8 is about twice as fast as float32 on a CPU, calibrated on DATA's images, and needs OpenVINO.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images in a batch.  [default: 32; on a GPU 256]")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads that read and decode.  [default: the CPUs]")
@click.option(
    "--on-error", type=click.Choice(["skip", "fail"]), default="skip", show_default=True,
    help="Record an unreadable image and go on, or stop at the first.",
)  # fmt: skip
@click.option(
    "--max-bad", type=ShareType(0, 1), default=0.05, show_default=True, metavar="SHARE",
    help="Stop once more of the images than this are unreadable; a single one never stops it, but for 0.",
)  # fmt: skip
@window_option
@max_pixels_option
@click.option("--keep-ids", is_flag=True, help="Keep DICOM's patient ids as they are, in place of a salted hash.")
@click.option(
    "--shard-size", type=SizeType(), metavar="SIZE",
    help="The most that one file of the cache may have; beyond it, it is in shards.  [default: 64GB, or as it was]",
)  # fmt: skip
@click.option("--rehash", is_flag=True, help="Read every file again, though size and mtime say that it is unchanged.")
@engine_options
@json_option
def extract(data: Path | str, cache: Path, name: str | None, as_json: bool, **options: Any) -> None:
    """Embed the images of DATA that the cache lacks.

    DATA is a folder (train/val/test with class folders, class folders alone, or with a labels.csv),
    a CSV with the columns path,label[,split][,patient] and others, or an npz file in MedMNIST's layout.
    Images may be DICOM files too, named in any way. Folders, CSVs and the paths in a CSV may be URLs:
    s3://, gs://, http(s):// and what else fsspec knows.

    Example:
      hoarfrost extract archive/ --cache lung.h5 --window -600/1500
      hoarfrost extract cohort.csv --cache cohort.h5 --weights resnet18.safetensors --json
      hoarfrost extract s3://archive/chest --cache chest.h5
      hoarfrost extract /mnt/archive --cache /mnt/archive.h5 --engine ray --address auto
    """
    from hoarfrost.cli.console import extract_text, extraction_progress
    from hoarfrost.features.extraction.extract import extract as run_extract
    from hoarfrost.features.extraction.plan import ExtractOptions

    with extraction_progress() as show:
        summary = run_extract(data, cache, name=name, options=ExtractOptions(**options), on_progress=show)
    emit(as_json, dataclasses.asdict(summary), extract_text(summary))


@click.command()
@click.argument("data", type=DataType())
@click.option(
    "--contact-sheet", type=PathType(dir_okay=False), metavar="FILE.png",
    help="Write up to 64 images as the backbone will see them.",
)  # fmt: skip
@window_option
@max_pixels_option
@json_option
def inspect(data: Path | str, as_json: bool, **options: Any) -> None:
    """Say what DATA is made of, without a backbone: formats, sizes, patients, duplicates, unreadable images.

    Every image is decoded once, as `extract` would, and what preprocessing does to each kind is told.

    Example:
      hoarfrost inspect images/
      hoarfrost inspect archive/ --window -600/1500 --contact-sheet seen.png
    """
    from hoarfrost.cli.console import extraction_progress, survey_text
    from hoarfrost.features.extraction.survey import survey

    with extraction_progress() as show:
        found = survey(data, **options, on_progress=show)
    emit(as_json, dataclasses.asdict(found), survey_text(found))


@click.command()
@click.argument("directory", metavar="DIR", type=PathType())
@click.option("--images", type=click.IntRange(30), default=480, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything that is drawn.")
@json_option
def demo(directory: Path, images: int, seed: int, as_json: bool) -> None:
    """Write the synthetic dataset (ultrasound phantoms) to DIR, an image folder with a labels.csv.

    Example:
      hoarfrost demo demo/
    """
    from hoarfrost.demo import write_demo

    summary = write_demo(directory, n_images=images, seed=seed)
    document = {**dataclasses.asdict(summary), "directory": str(summary.directory)}
    emit(as_json, document, f"{summary.n_images} images of {summary.n_patients} patients in {summary.directory}")
