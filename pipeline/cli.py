"""The command line: each command parses, makes one call, prints. The sole user of click."""
# ruff: noqa: D301 - click reads \b, one character, as "keep these lines as they are"; a raw docstring would show it.

import dataclasses
import errno
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from features.errors import HoarfrostError
from features.formats import MAX_PIXELS
from pipeline import __version__

if TYPE_CHECKING:
    from features.windows import Window

SMALLEST_LIMIT = 16_000_000  # bytes: two chunks of the cache, and as much for rows that are held

Command = TypeVar("Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Turns what is wrong with the user's input into a message and exit status 1; lists commands in order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HoarfrostError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:  # a full disk or a lost mount is nobody's defect; click itself ends on a closed pipe
            if error.errno == errno.EPIPE:
                raise
            where = error.filename or "standard output"
            raise click.ClickException(f"{where}: {error.strerror or error}. Mend that, and run it again.") from error


class _PathType(click.Path):
    """A path; an empty one, as from a variable that was never set, would mean the current folder."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class _SizeType(click.ParamType[int]):
    """A number of bytes: 1GB, 500MB, 2GiB, or a plain number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is no size; write 1GB, 500MB or 2GiB", param, ctx)
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))
        if size < SMALLEST_LIMIT:
            self.fail(f"{value} is too little; give at least {SMALLEST_LIMIT // 1_000_000}MB", param, ctx)
        return size


class _ShareType(click.FloatRange):
    """A share; NaN is none, though to a range it is neither too small nor too large."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        share = float(super().convert(value, param, ctx))
        if math.isnan(share):
            self.fail(f"{value} is not a number", param, ctx)
        return share


class _WindowType(click.ParamType["Window"]):
    """A window of grey values: CENTER/WIDTH."""

    name = "window"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "Window":
        from features.windows import Window

        try:
            return value if isinstance(value, Window) else Window.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def window_option(command: Command) -> Command:
    """Add `--window CENTER/WIDTH`."""
    return click.option(
        "--window", type=_WindowType(), metavar="CENTER/WIDTH",
        help="Of grey DICOM images, as in 40/400; in place of the files' own.",
    )(command)  # fmt: skip


def max_pixels_option(command: Command) -> Command:
    """Add `--max-pixels N`."""
    return click.option(
        "--max-pixels", type=click.IntRange(1), default=MAX_PIXELS, show_default=True,
        help="Larger images are unreadable: a small file may promise any size.",
    )(command)  # fmt: skip


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def cache_option(command: Command) -> Command:
    """Add `--cache FILE`."""
    path = _PathType(dir_okay=False)
    return click.option("--cache", type=path, required=True, metavar="FILE", help="The cache's HDF5 file.")(command)


def run_option(command: Command) -> Command:
    """Add `--run DIR`."""
    path = _PathType()
    return click.option("--run", type=path, required=True, metavar="DIR", help="The run folder.")(command)


def emit(as_json: bool, document: dict[str, Any], text: str) -> None:
    """Print a result: one JSON object, or text for people."""
    output = json.dumps(document, ensure_ascii=True, allow_nan=False) if as_json else text
    # File names that are not UTF-8 must not end a finished command in an encoding error.
    click.echo(output.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))


@click.group(cls=_Group, context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hoarfrost")
def main() -> None:
    """Frozen features, hoarded: trustworthy image classifiers in minutes.

    `extract` runs a frozen ResNet18 once over every image and caches the embeddings; `train`
    trains lightweight heads on the cache; `report` writes one HTML file.

    \b
    Example:
      hoarfrost extract images/ --cache images.h5
      hoarfrost train --cache images.h5 --run runs/first --positive malignant
      hoarfrost report --run runs/first
    """
    from pipeline.console import show_warnings

    show_warnings()


@main.command()
@click.argument("data", type=_PathType())
@cache_option
@click.option("--name", help="The data set's name in the cache; by default that of its folder or file.")
@click.option(
    "--weights", default="imagenet", show_default=True, metavar="imagenet|PATH|random:SEED|auto",
    help="The backbone's weights: torchvision's, a checkpoint of your own (.pth, .safetensors), untrained ones, "
    "or imagenet where it can be had and else random:0.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
    help="Where to compute; auto is cuda where there is one, else cpu.",
)  # fmt: skip
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
    "--max-bad", type=click.FloatRange(0, 1), default=0.05, show_default=True, metavar="SHARE",
    help="Stop once more of the images than this are unreadable; a single one never stops it, but for 0.",
)  # fmt: skip
@window_option
@max_pixels_option
@click.option("--keep-ids", is_flag=True, help="Keep DICOM's patient ids as they are, in place of a salted hash.")
@click.option("--rehash", is_flag=True, help="Read every file again, though size and mtime say that it is unchanged.")
@json_option
def extract(data: Path, cache: Path, name: str | None, as_json: bool, **options: Any) -> None:
    """Embed the images of DATA that the cache lacks.

    DATA is a folder (train/val/test with class folders, class folders alone, or with a labels.csv),
    a CSV with the columns path,label[,split][,patient] and others, or an npz file in MedMNIST's layout.
    Images may be DICOM files too, named in any way.

    \b
    Example:
      hoarfrost extract archive/ --cache lung.h5 --window -600/1500
      hoarfrost extract cohort.csv --cache cohort.h5 --weights resnet18.safetensors --json
    """
    from features.extract import extract as run_extract
    from features.plan import ExtractOptions
    from pipeline.console import extract_text, extraction_progress

    with extraction_progress() as show:
        summary = run_extract(data, cache, name=name, options=ExtractOptions(**options), on_progress=show)
    emit(as_json, dataclasses.asdict(summary), extract_text(summary))


@main.command()
@cache_option
@run_option
@click.option("--dataset", metavar="NAME", help="Which of the cache's data sets; not needed where there is one.")
@click.option("--positive", multiple=True, metavar="LABEL", help="Label that counts as class 1; may be repeated.")
@click.option("--multilabel", is_flag=True, help="Images may have several labels: columns of 0 and 1, one a label.")
@click.option("--label", "labels", multiple=True, metavar="COLUMN", help="Which columns; by default all of 0 and 1.")
@click.option("--head", "heads", multiple=True, metavar="SPEC", help="Head to train; may be repeated.")
@click.option(
    "--grid", "grids", multiple=True, metavar="KEY=V,V",
    help="Cross every head with these values of lr, weight_decay or dropout; may be repeated.",
)  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True,
    help="Train each head so many times; the selection is by their mean.",
)  # fmt: skip
@click.option(
    "--folds", "n_folds", type=click.IntRange(2, 100),
    help="Cross-validate too: select in each training fold, pool the outer folds' predictions.",
)  # fmt: skip
@click.option(
    "--learning-curve", "with_learning_curve", is_flag=True,
    help="Train the selected head on 5, 10, 20 and 50% of the training patients too.",
)  # fmt: skip
@click.option(
    "--tensorboard", "with_tensorboard", is_flag=True,
    help="Write the training curves for TensorBoard too, to DIR/tensorboard.",
)  # fmt: skip
@click.option(
    "--per-patient", type=click.Choice(["mean", "max"]),
    help="Score patients in place of images: the mean, or the largest, of their images' probabilities.",
)  # fmt: skip
@click.option(
    "--prevalence", type=_ShareType(0, 1, min_open=True, max_open=True), metavar="SHARE",
    help="Of the positive class where the head is to be used: predictive values and net benefit for there.",
)  # fmt: skip
@click.option("--allow-leakage", is_flag=True, help="Go on though two splits share patients or the same images.")
@click.option(
    "--memory-limit", type=_SizeType(), metavar="SIZE",
    help="Stream embeddings that take more (1GB, 500MB) from the cache.  [default: half of the memory]",
)  # fmt: skip
@click.option(
    "--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True,
    help="Of the learning rate; cosine has a warm-up.",
)  # fmt: skip
@click.option(
    "--class-weight", type=click.Choice(["none", "balanced"]), default="none", show_default=True,
    help="balanced: each class counts the same in the loss, however many images it has.",
)  # fmt: skip
@click.option(
    "--label-smoothing", type=_ShareType(0, 1, max_open=True), default=0.1, show_default=True,
    help="Share of each label that is spread over all classes.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--patience", type=click.IntRange(1), default=10, show_default=True, help="Epochs without a better one.")
@click.option("--batch-size", type=click.IntRange(1, 1 << 20), default=64, show_default=True, help="Images in a step.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of splits, weights and batches.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to compute; auto is cuda where there is one, else cpu.",
)  # fmt: skip
@json_option
def train(
    cache: Path, run: Path, heads: tuple[str, ...], grids: tuple[str, ...], multilabel: bool, labels: tuple[str, ...],
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train heads on cached embeddings, and score them. No image is opened.

    Heads: linear; mlp:256 (one hidden layer); mlp:256x6 (six of 256, ReLU); with options, as in
    mlp:256x2,dropout=0.2,lr=1e-3,weight_decay=1e-2. Default: linear, mlp:256 and mlp:256x6.

    \b
    Example:
      hoarfrost train --cache images.h5 --run runs/first --positive malignant
      hoarfrost train --cache images.h5 --run runs/wide --head mlp:512 --head mlp:128x3,dropout=0.2
      hoarfrost train --cache xrays.h5 --run runs/findings --multilabel --label effusion --label mass
      hoarfrost train --cache images.h5 --run runs/grid --grid lr=1e-4,1e-3 --grid weight_decay=0,1e-2,1e-1 --seeds 5
    """
    from pipeline.console import train_text, training_progress
    from pipeline.experiment import run_experiment
    from pipeline.heads import cross_heads, parse_heads
    from pipeline.runs import metrics_document
    from pipeline.train import TrainingConfig

    config = TrainingConfig(**{field.name: options.pop(field.name) for field in dataclasses.fields(TrainingConfig)})
    result = run_experiment(
        cache, run, cross_heads(parse_heads(heads), grids), config=config, **options,
        label_columns=labels if multilabel or labels else None,
        command=["hoarfrost", *sys.argv[1:]], on_epoch=training_progress(config.epochs),
    )  # fmt: skip
    # No forward pass: training loads no backbone (test_train_imports_neither_torchvision_nor_pillow holds it).
    document = {**metrics_document(result), "run": str(run), "forward_images": 0}
    emit(as_json, document, train_text(result))


@main.command()
@click.option(
    "--run", "runs", type=_PathType(), required=True, multiple=True, metavar="DIR",
    help="The run folder; several stand side by side.",
)  # fmt: skip
@click.option(
    "--output", type=_PathType(dir_okay=False), metavar="FILE.html",
    help="Where the report goes; several runs need it.  [default: DIR/report.html]",
)  # fmt: skip
@click.option(
    "--figures", type=_PathType(), metavar="FOLDER",
    help="Write each figure as SVG and PNG too, and each table as CSV, into this folder.",
)  # fmt: skip
@click.option("--images/--no-images", "with_images", default=True, help="With small pictures, or no pixel of any.")
@click.option("--map/--no-map", "with_map", default=True, help="With a map of the embeddings, or without.")
@json_option
def report(runs: tuple[Path, ...], output: Path | None, figures: Path | None, as_json: bool, **options: bool) -> None:
    """Write a run's report, one self-contained HTML file, to DIR/report.html; or several runs side by side.

    \b
    Example:
      hoarfrost report --run runs/first --figures figures/
      hoarfrost report --run runs/first --run runs/wide --output first-wide.html
    """
    from pipeline.report import report_runs

    if output is not None and output.suffix.lower() not in {".html", ".htm"}:
        raise click.UsageError(f"--output {output} would be HTML; give it a name that ends in .html.")
    if len(runs) > 1 and (output is None or figures is not None):
        raise click.UsageError("Several runs need --output FILE.html, and have no --figures; name one --run for those.")
    found = report_runs(runs, output=output, figures=figures, **options)
    emit(as_json, found.document(), found.text())


@main.command()
@click.argument("data", type=_PathType())
@click.option(
    "--contact-sheet", type=_PathType(dir_okay=False), metavar="FILE.png",
    help="Write up to 64 images as the backbone will see them.",
)  # fmt: skip
@window_option
@max_pixels_option
@json_option
def inspect(data: Path, as_json: bool, **options: Any) -> None:
    """Say what DATA is made of, without a backbone: formats, sizes, patients, duplicates, unreadable images.

    Every image is decoded once, as `extract` would, and what preprocessing does to each kind is told.

    \b
    Example:
      hoarfrost inspect images/
      hoarfrost inspect archive/ --window -600/1500 --contact-sheet seen.png
    """
    from features.survey import survey
    from pipeline.console import extraction_progress, survey_text

    with extraction_progress() as show:
        found = survey(data, **options, on_progress=show)
    emit(as_json, dataclasses.asdict(found), survey_text(found))


@main.command()
@click.argument("directory", metavar="DIR", type=_PathType())
@click.option("--images", type=click.IntRange(30), default=480, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything that is drawn.")
@json_option
def demo(directory: Path, images: int, seed: int, as_json: bool) -> None:
    """Write the synthetic data set (ultrasound phantoms) to DIR, an image folder with a labels.csv.

    \b
    Example:
      hoarfrost demo demo/
    """
    from pipeline.demo import write_demo

    summary = write_demo(directory, n_images=images, seed=seed)
    document = {**dataclasses.asdict(summary), "directory": str(summary.directory)}
    emit(as_json, document, f"{summary.n_images} images of {summary.n_patients} patients in {summary.directory}")


@main.group()
def cache() -> None:
    """Look at a cache, check every byte of it, or make it smaller.

    \b
    Example:
      hoarfrost cache info images.h5
    """


def file_argument(command: Command) -> Command:
    """Add the argument FILE, a cache."""
    return click.argument("file", type=_PathType(dir_okay=False))(command)


@cache.command()
@file_argument
@json_option
def info(file: Path, as_json: bool) -> None:
    """Say what is in a cache: fingerprint, sizes, data sets, duplicates.

    \b
    Example:
      hoarfrost cache info images.h5
    """
    from features.cache import describe
    from pipeline.console import cache_info_text

    found = describe(file)
    emit(as_json, dataclasses.asdict(found), cache_info_text(found))


@cache.command()
@file_argument
@json_option
@click.pass_context
def verify(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Check every byte and every reference of a cache; exit 1 where something is wrong.

    \b
    Example:
      hoarfrost cache verify images.h5
    """
    from features.cache import verify as run_verify
    from pipeline.console import cache_verify_text

    found = run_verify(file)
    emit(as_json, dataclasses.asdict(found), cache_verify_text(found))
    ctx.exit(0 if found.sound else 1)


@cache.command()
@file_argument
@json_option
def compact(file: Path, as_json: bool) -> None:
    """Fold parts, and drop the embeddings that are damaged or that no data set uses.

    \b
    Example:
      hoarfrost cache compact images.h5
    """
    from features.cache import compact as run_compact
    from pipeline.console import cache_compact_text

    summary = run_compact(file)
    emit(as_json, dataclasses.asdict(summary), cache_compact_text(summary))
