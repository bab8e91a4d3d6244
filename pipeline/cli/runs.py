"""Commands on runs: train, report."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import cache_option, emit, json_option, run_option
from hoarfrost.cli.types import PathType, ShareType, SizeType
from hoarfrost.heads.config import TrainingConfig


@click.command()
@cache_option
@run_option
@click.option("--dataset", metavar="NAME", help="Which of the cache's datasets; not needed where there is one.")
@click.option("--positive", multiple=True, metavar="LABEL", help="Label that counts as class 1; may be repeated.")
@click.option("--multilabel", is_flag=True, help="Images may have several labels: columns of 0 and 1, one a label.")
@click.option("--label", "labels", multiple=True, metavar="COLUMN", help="Which columns; by default all of 0 and 1.")
@click.option("--head", "heads", multiple=True, metavar="SPEC", help="Head to train; may be repeated.")
@click.option(
    "--grid", "grids", multiple=True, metavar="KEY=V,V",
    help="Cross every head with these values of lr, weight_decay or dropout; may be repeated.",
)  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=TrainingConfig.seeds, show_default=True,
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
    "--prevalence", type=ShareType(0, 1, min_open=True, max_open=True), metavar="SHARE",
    help="Of the positive class where the head is to be used: predictive values and net benefit for there.",
)  # fmt: skip
@click.option("--allow-leakage", is_flag=True, help="Go on though two splits share patients or the same images.")
@click.option(
    "--memory-limit", type=SizeType(), metavar="SIZE",
    help="Stream embeddings that take more (1GB, 500MB) from the cache.  [default: half of the memory]",
)  # fmt: skip
@click.option(
    "--schedule", type=click.Choice(["constant", "cosine"]), default=TrainingConfig.schedule, show_default=True,
    help="Of the learning rate; cosine has a warm-up.",
)  # fmt: skip
@click.option(
    "--class-weight", type=click.Choice(["none", "balanced"]), default=TrainingConfig.class_weight, show_default=True,
    help="balanced: each class counts the same in the loss, however many images it has.",
)  # fmt: skip
@click.option(
    "--label-smoothing", type=ShareType(0, 1, max_open=True), default=TrainingConfig.label_smoothing, show_default=True,
    help="Share of each label that is spread over all classes.",
)  # fmt: skip
@click.option(
    "--epochs", type=click.IntRange(1), default=TrainingConfig.epochs, show_default=True, help="At most so many."
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=TrainingConfig.patience,
    show_default=True,
    help="Epochs without a better one.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1 << 20),
    default=TrainingConfig.batch_size,
    show_default=True,
    help="Images in a step.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=TrainingConfig.seed,
    show_default=True,
    help="Of splits, weights and batches.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default=TrainingConfig.device, show_default=True,
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

    Example:
      hoarfrost train --cache images.h5 --run runs/first --positive malignant
      hoarfrost train --cache images.h5 --run runs/wide --head mlp:512 --head mlp:128x3,dropout=0.2
      hoarfrost train --cache xrays.h5 --run runs/findings --multilabel --label effusion --label mass
      hoarfrost train --cache images.h5 --run runs/grid --grid lr=1e-4,1e-3 --grid weight_decay=0,1e-2,1e-1 --seeds 5
    """
    from hoarfrost.cli.console import train_text, training_progress
    from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
    from hoarfrost.heads.specs import cross_heads, parse_heads
    from hoarfrost.runs import metrics_document

    training = TrainingConfig(**{field.name: options.pop(field.name) for field in dataclasses.fields(TrainingConfig)})
    result = run_experiment(
        cache, run, cross_heads(parse_heads(heads), grids),
        ExperimentConfig(training=training, label_columns=labels if multilabel or labels else None, **options),
        command=["hoarfrost", *sys.argv[1:]], on_epoch=training_progress(training.epochs),
    )  # fmt: skip
    # No forward pass: training loads no backbone (test_train_imports_neither_torchvision_nor_pillow holds it).
    document = {**metrics_document(result), "run": str(run), "forward_images": 0}
    emit(as_json, document, train_text(result))


@click.command()
@click.option(
    "--run", "runs", type=PathType(), required=True, multiple=True, metavar="DIR",
    help="The run folder; several stand side by side.",
)  # fmt: skip
@click.option(
    "--output", type=PathType(dir_okay=False), metavar="FILE.html",
    help="Where the report goes; several runs need it.  [default: DIR/report.html]",
)  # fmt: skip
@click.option(
    "--figures", type=PathType(), metavar="FOLDER",
    help="Write each figure as SVG and PNG too, and each table as CSV, into this folder.",
)  # fmt: skip
@click.option("--images/--no-images", "with_images", default=True, help="With small pictures, or no pixel of any.")
@click.option("--map/--no-map", "with_map", default=True, help="With a map of the embeddings, or without.")
@click.option(
    "--explain", "with_explanations", is_flag=True,
    help="Show the errors with maps of what speaks for a class; the backbone passes over these images.",
)  # fmt: skip
@click.option("--weights", metavar="PATH|…", help="Where the backbone's weights are now; for --explain.")
@json_option
def report(runs: tuple[Path, ...], output: Path | None, figures: Path | None, as_json: bool, **options: Any) -> None:
    """Write a run's report, one self-contained HTML file, to DIR/report.html; or several runs side by side.

    Example:
      hoarfrost report --run runs/first --figures figures/
      hoarfrost report --run runs/first --explain
      hoarfrost report --run runs/first --run runs/wide --output first-wide.html
    """
    from hoarfrost.report import report_runs

    if output is not None and output.suffix.lower() not in {".html", ".htm"}:
        raise click.UsageError(f"--output {output} would be HTML; give it a name that ends in .html.")
    if len(runs) > 1 and (output is None or figures is not None or options["with_explanations"]):
        raise click.UsageError("Several runs need --output FILE.html, and have no --figures and no --explain.")
    if options["weights"] is not None and not options["with_explanations"]:
        raise click.UsageError("--weights is for --explain: nothing else in a report needs the backbone.")
    if options["with_explanations"] and not options["with_images"]:
        raise click.UsageError("--explain shows images, and --no-images none; leave one of them out.")
    found = report_runs(runs, output=output, figures=figures, **options)
    emit(as_json, found.document(), found.text())
