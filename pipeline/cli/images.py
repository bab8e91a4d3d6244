"""Commands on images: extract, inspect, demo."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import DataType, NumbersType, PathType, ShareType, SizeType
from hoarfrost.features.encoder.registry import DEFAULT


@click.command(cls=opts.Command)
@click.argument("data", type=DataType())
@opts.cache
@opts.option("--name", "The dataset's name in the cache.  [default: the name of its folder or file]")
@opts.option(
    "--encoder",
    "The frozen network: resnet18, resnet34, resnet50, resnet101, resnet152, densenet121, convnext_tiny, vit_b_16, swin_t; "
    "timm:NAME for any model of timm; torch:FILE.pt2 or onnx:FILE.onnx for your own.",
    default=DEFAULT.name, metavar="NAME",
)  # fmt: skip
@opts.option(
    "--weights",
    "The encoder's weights. imagenet, or pretrained: the published ones. PATH: your own checkpoint (.pth, .safetensors). "
    "random:SEED: untrained. auto: imagenet if available, else random:0.",
    default="imagenet", metavar="imagenet|PATH|random:SEED|auto",
)  # fmt: skip
@opts.option(
    "--precision",
    "Number format of the encoder. auto is bfloat16 where the device computes it natively, else float32. int8 is "
    "about twice as fast as float32 on a CPU. It is calibrated on images of DATA and needs OpenVINO.",
    group=opts.SPEED, type=click.Choice(["auto", "float32", "bfloat16", "int8"]), default="auto",
)  # fmt: skip
@opts.option(
    "--fast",
    "Use int8 where it at least doubles the speed: on CPUs with AVX2 or VNNI that are slow in bfloat16. How far the "
    "embeddings are from those in float32 is measured on images of DATA, printed, and kept in the cache.",
    group=opts.SPEED, is_flag=True,
)  # fmt: skip
@opts.option(
    "--views",
    "How to look at each image, such as 224,224:flip,448:crop. standard: once, at the encoder's own size. high: the whole "
    "image, its mirror image and its centre, at 224 and 448 pixels, and --layers 3,4. Do not use flip where left and right "
    "mean something. 224,224:region looks at the whole image and at its --region.  [default: standard; those of an existing "
    "cache]",
    group=opts.IMAGES, metavar="VIEW,...", default="", show_default=False,
)  # fmt: skip
@opts.option(
    "--layers",
    "Layers of the encoder whose means are the embedding, such as 3,4. More layers often help, at no cost in time.  "
    "[default: the last; those of an existing cache]",
    group=opts.IMAGES, type=NumbersType(), metavar="N,...",
)  # fmt: skip
@opts.option(
    "--region", "Embed a part of each image: in views named region, or without such views in place of the whole image. box: "
    "the column box, x0,y0,x1,y1 in pixels. mask: around the mask in the column mask, or in NAME_mask.* beside the image.  "
    "[default: the whole image]",
    group=opts.IMAGES, type=click.Choice(["box", "mask"]),
)  # fmt: skip
@opts.option(
    "--margin", "Margin around a region, as a share of its longer side.  [default: 0.1]",
    group=opts.IMAGES, type=ShareType(0, 4), metavar="SHARE",
)  # fmt: skip
@opts.option(
    "--on-error", "Skip an unreadable image and record the reason, or stop at the first one.",
    type=click.Choice(["skip", "fail"]), default="skip",
)  # fmt: skip
@opts.option(
    "--max-bad", "Stop if a larger share of the images is unreadable. A single unreadable image stops it only at 0.",
    group=opts.IMAGES, type=ShareType(0, 1), default=0.05, metavar="SHARE",
)  # fmt: skip
@opts.table
@opts.window
@opts.max_pixels
@opts.keep_ids
@opts.option(
    "--rehash", "Read every file again, even if its size and date have not changed.",
    group=opts.IMAGES, is_flag=True,
)  # fmt: skip
@opts.device
@opts.batch_size
@opts.workers
@opts.decode
@opts.option(
    "--shard-size",
    "Largest size of one cache file. A larger cache is divided into shards.  [default: 64GB, or the cache's own]",
    group=opts.SPEED, type=SizeType(), metavar="SIZE",
)  # fmt: skip
@opts.engine
@opts.json_flag
def extract(data: Path | str, cache: Path, name: str | None, fast: bool, as_json: bool, **options: Any) -> None:
    """Compute the embeddings of the images in DATA that are not in the cache yet.

    DATA is an image folder, a CSV or an npz file. A folder has class folders, train/val/test with class folders, or a
    labels.csv. A CSV has the columns path,label[,split][,patient] and any others. An npz file has MedMNIST's layout.
    Images may also be DICOM files, with any file name. Folders, CSVs and the paths in a CSV may be URLs: s3://, gs://,
    http(s):// and others that fsspec knows.

    Example:
      $ hoarfrost extract images/ --cache images.h5
      images: 480 images, 480 embedded, 0 reused, 0 unreadable; 135.1 s
      cache images.h5: weights imagenet, bfloat16 on cpu

    More examples:
      hoarfrost extract archive/ --cache lung.h5 --window -600/1500
      hoarfrost extract cohort.csv --cache cohort.h5 --weights resnet18.safetensors --json
      hoarfrost extract s3://archive/chest --cache chest.h5
      hoarfrost extract images/ --cache images.h5 --views high
      hoarfrost extract images/ --cache dino.h5 --encoder timm:vit_small_patch14_dinov2 --weights dinov2.pth
      hoarfrost extract /mnt/archive --cache /mnt/archive.h5 --engine ray --address auto
    """
    from hoarfrost.cli.console.progress import extraction_progress
    from hoarfrost.cli.console.summaries import extract_text
    from hoarfrost.features.extraction.extract import extract as run_extract
    from hoarfrost.features.extraction.plan import ExtractOptions

    options["precision"] = opts.precision_of(options["precision"], fast=fast)
    with extraction_progress() as show:
        summary = run_extract(data, cache, name=name, options=ExtractOptions(**options), on_progress=show)
    following = ("train", "--cache", cache, "--run", Path("runs") / cache.stem)
    opts.emit(as_json, dataclasses.asdict(summary), extract_text(summary), following)


@click.command(cls=opts.Command)
@click.argument("data", type=DataType())
@opts.option(
    "--contact-sheet", "Save up to 64 images in one picture, as the encoder will see them.",
    type=PathType(dir_okay=False), metavar="FILE.png",
)  # fmt: skip
@opts.table
@opts.window
@opts.max_pixels
@opts.json_flag
def inspect(data: Path | str, as_json: bool, **options: Any) -> None:
    """List the formats, sizes, patients, duplicates and unreadable images in DATA, without the encoder.

    Every image is decoded once, as `extract` does it. The list shows what preprocessing does to each kind of image.

    Example:
      $ hoarfrost inspect images/
      images: 480 images, 243 patients; 0 duplicates, 0 unreadable
        480 PNG, L, 8 bits, 240 x 208: grey, resized to 224 x 224
      label: 240 benign, 144 malignant, 96 normal
      scanner: 243 A, 237 B

    More examples:
      hoarfrost inspect archive/ --window -600/1500 --contact-sheet seen.png
    """
    from hoarfrost.cli.console.progress import extraction_progress
    from hoarfrost.cli.console.summaries import survey_text
    from hoarfrost.features.extraction.survey import survey

    with extraction_progress() as show:
        found = survey(data, **options, on_progress=show)
    following = ("extract", data, "--cache", f"{Path(found.dataset).name}.h5")
    opts.emit(as_json, dataclasses.asdict(found), survey_text(found), following)


@click.command(cls=opts.Command)
@click.argument("directory", metavar="DIR", type=PathType())
@opts.option("--images", "How many images to draw.", type=click.IntRange(30), default=480)
@opts.option("--seed", "Seed of the random drawing.", type=click.IntRange(0), default=0)
@opts.option(
    "--report with_report",
    "Do the whole job: DIR/images, DIR/cache.h5, and DIR/run with its report.html.",
    is_flag=True,
)
@opts.option("--weights", "With --report: the encoder's weights, as for `extract`.", default="auto", metavar="PATH|…")
@opts.json_flag
def demo(directory: Path, images: int, seed: int, with_report: bool, weights: str, as_json: bool) -> None:
    """Write a synthetic dataset of ultrasound images to DIR, an image folder with a labels.csv.

    Example:
      $ hoarfrost demo images
      480 images of 243 patients in images

    More examples:
      hoarfrost demo first --report
    """
    from hoarfrost.cli.console.progress import extraction_progress
    from hoarfrost.demo import write_demo
    from hoarfrost.demo.main_job import report_demo

    if with_report:
        with extraction_progress() as show:
            made = report_demo(directory, n_images=images, seed=seed, weights=weights, on_progress=show)
        opts.emit(as_json, made.document(), f"report {made.report}")
        return
    summary = write_demo(directory, n_images=images, seed=seed)
    document = {**dataclasses.asdict(summary), "directory": str(summary.directory)}
    text = f"{summary.n_images} images of {summary.n_patients} patients in {summary.directory}"
    opts.emit(as_json, document, text, ("extract", directory, "--cache", f"{directory.name}.h5", "--weights", "auto"))
