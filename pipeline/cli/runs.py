"""Commands on runs: train, report."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli.options import (
    CONTENT,
    DATA,
    OTHER,
    SCORING,
    SPEED,
    TRAINING,
    Command,
    cache_option,
    emit,
    json_option,
    option,
    run_option,
    weights_option,
)
from hoarfrost.cli.types import PathType, ShareType, SizeType
from hoarfrost.heads.config import TrainingConfig


@click.command(cls=Command)
@cache_option
@run_option
@option("--positive", multiple=True, metavar="LABEL", help="Label that counts as class 1. May be repeated.")
@option("--head", "heads", multiple=True, metavar="SPEC", help="Head to train, see above. May be repeated.")
@option(
    "--folds", "n_folds", type=click.IntRange(2, 100),
    help="Also cross-validate: select a head in each fold, and score the pooled predictions of all folds.",
)  # fmt: skip
@option("--dataset", metavar="NAME", group=DATA, help="Dataset of the cache. Required if the cache has several.")
@option(
    "--multilabel", is_flag=True, group=DATA, help="Images may have several labels, one column of 0 and 1 per label."
)  # fmt: skip
@option(
    "--label", "labels", multiple=True, metavar="COLUMN", group=DATA,
    help="Label column for --multilabel. May be repeated.  [default: all columns of 0 and 1]",
)  # fmt: skip
@option(
    "--allow-leakage", is_flag=True, group=DATA,
    help="Continue even if two splits share patients or identical images. The report states it.",
)  # fmt: skip
@option(
    "--grid", "grids", multiple=True, metavar="KEY=V,V", group=TRAINING,
    help="Train every head with each of these values of lr, weight_decay or dropout. May be repeated.",
)  # fmt: skip
@option(
    "--seeds", type=click.IntRange(1, 100), default=TrainingConfig.seeds, show_default=True, group=TRAINING,
    help="How many times each head is trained. The head with the best mean is selected.",
)  # fmt: skip
@option(
    "--seed", type=click.IntRange(0), default=TrainingConfig.seed, show_default=True, group=TRAINING,
    help="First seed, for splits, initial weights and batches.",
)  # fmt: skip
@option(
    "--epochs", type=click.IntRange(1), default=TrainingConfig.epochs, show_default=True, group=TRAINING,
    help="Largest number of epochs.",
)  # fmt: skip
@option(
    "--patience", type=click.IntRange(1), default=TrainingConfig.patience, show_default=True, group=TRAINING,
    help="Stop a head after this many epochs without a lower validation loss.",
)  # fmt: skip
@option(
    "--batch-size", type=click.IntRange(1, 1 << 20), default=TrainingConfig.batch_size, show_default=True,
    group=TRAINING, help="Images in one training step.",
)  # fmt: skip
@option(
    "--schedule", type=click.Choice(["constant", "cosine"]), default=TrainingConfig.schedule, show_default=True,
    group=TRAINING, help="Schedule of the learning rate. cosine includes a warm-up.",
)  # fmt: skip
@option(
    "--class-weight", type=click.Choice(["none", "balanced"]), default=TrainingConfig.class_weight, show_default=True,
    group=TRAINING, help="balanced: each class has the same weight in the loss, however many images it has.",
)  # fmt: skip
@option(
    "--label-smoothing", type=ShareType(0, 1, max_open=True), default=TrainingConfig.label_smoothing, show_default=True,
    group=TRAINING, help="Share of each label that is spread evenly over all classes.",
)  # fmt: skip
@option(
    "--per-patient", type=click.Choice(["mean", "max"]), group=SCORING,
    help="Score patients instead of images, by the mean or the maximum of their images' probabilities.",
)  # fmt: skip
@option(
    "--prevalence", type=ShareType(0, 1, min_open=True, max_open=True), metavar="SHARE", group=SCORING,
    help="Prevalence of the positive class where the head will be used. Adds predictive values and net benefit for it.",
)  # fmt: skip
@option(
    "--learning-curve", "with_learning_curve", is_flag=True, group=SCORING,
    help="Also train the selected head on 5, 10, 20 and 50% of the training patients.",
)  # fmt: skip
@option(
    "--memory-limit", type=SizeType(), metavar="SIZE", group=SPEED,
    help="Read embeddings from the cache in parts if they need more memory (1GB, 500MB).  [default: half of the memory]",
)  # fmt: skip
@option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default=TrainingConfig.device, show_default=True,
    group=SPEED, help="Where to compute. auto uses cuda if it is available, else the CPU.",
)  # fmt: skip
@option("--overwrite", is_flag=True, group=OTHER, help="Replace an earlier run in DIR even if it has a report.")
@option(
    "--tensorboard", "with_tensorboard", is_flag=True, group=OTHER,
    help="Also write the training curves for TensorBoard, to DIR/tensorboard.",
)  # fmt: skip
@json_option
def train(
    cache: Path, run: Path, heads: tuple[str, ...], grids: tuple[str, ...], multilabel: bool, labels: tuple[str, ...],
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train heads on cached embeddings, score them, and write a run folder. No image is opened.

    Heads: linear; mlp:256 (one hidden layer of 256 units); mlp:256x6 (six hidden layers). Options follow after commas:
    mlp:256x2,dropout=0.2,lr=1e-3,weight_decay=1e-2. The default heads are linear, mlp:256 and mlp:256x6.

    A run that is already in DIR is replaced once the new one is complete. If `report` has written its report.html there,
    --overwrite is required. A folder with any other files is never replaced.

    Example:
      $ hoarfrost train --cache images.h5 --run runs/first --positive malignant --head mlp:256x6
         head                   parameters  best epoch         val AUC  test AUC (95% CI)       test accuracy
      *  mlp:256x6              460,802     5 (stopped at 15)  0.998    0.991 (0.959 to 0.999)  0.958
         majority class                                        0.500    0.500 (0.500 to 0.500)  0.747
         logistic regression                                   0.989    0.992 (0.958 to 1.000)  0.968
      ...

    More examples:
      hoarfrost train --cache images.h5 --run runs/wide --head mlp:512 --head mlp:128x3,dropout=0.2
      hoarfrost train --cache xrays.h5 --run runs/findings --multilabel --label effusion --label mass
      hoarfrost train --cache images.h5 --run runs/grid --grid lr=1e-4,1e-3 --grid weight_decay=0,1e-2,1e-1 --seeds 5
    """
    from hoarfrost.cli.console import interruptible, train_text, training_progress
    from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
    from hoarfrost.heads.specs import cross_heads, parse_heads
    from hoarfrost.runs import metrics_document

    training = TrainingConfig(**{field.name: options.pop(field.name) for field in dataclasses.fields(TrainingConfig)})
    columns = labels if multilabel or labels else None
    config, specs = ExperimentConfig(training=training, label_columns=columns, **options), parse_heads(heads)
    specs = cross_heads(specs, grids)
    with interruptible(run), training_progress(len(specs), config) as show:
        command = ["hoarfrost", *sys.argv[1:]]
        result = run_experiment(cache, run, specs, config, command=command, on_progress=show)
    # No forward pass: training loads no encoder (test_train_imports_neither_torchvision_nor_pillow holds it).
    document = {**metrics_document(result), "run": str(run), "forward_images": 0}
    emit(as_json, document, train_text(result), ("report", "--run", run))


@click.command(cls=Command)
@option(
    "--run", "runs", type=PathType(), required=True, multiple=True, metavar="DIR",
    help="The run folder. Repeat it to compare several runs side by side.",
)  # fmt: skip
@option(
    "--output", type=PathType(dir_okay=False), metavar="FILE.html",
    help="The report file. Required for several runs.  [default: DIR/report.html]",
)  # fmt: skip
@option(
    "--figures", type=PathType(), metavar="FOLDER",
    help="Also write each figure as SVG and PNG, and each table as CSV, to this folder.",
)  # fmt: skip
@option(
    "--explain", "with_explanations", is_flag=True,
    help="Show the errors with maps of what speaks for a class. The encoder runs over these images again.",
)  # fmt: skip
@option(
    "--images/--no-images", "with_images", default=True, help="Include thumbnails of images, or no pixels of any image."
)
@option(
    "--map/--no-map", "with_map", default=True, group=CONTENT, help="Include a map of the embeddings, or omit it."
)  # fmt: skip
@weights_option
@json_option
def report(runs: tuple[Path, ...], output: Path | None, figures: Path | None, as_json: bool, **options: Any) -> None:
    """Write the report of a run, one self-contained HTML file, or compare several runs side by side.

    Example:
      $ hoarfrost report --run runs/first
      report runs/first/report.html

    More examples:
      hoarfrost report --run runs/first --figures figures/
      hoarfrost report --run runs/first --explain
      hoarfrost report --run runs/first --run runs/wide --output first-wide.html
    """
    from hoarfrost.report import report_runs

    if output is not None and output.suffix.lower() not in {".html", ".htm"}:
        raise click.UsageError(f"--output {output}: the report is HTML. Choose a name that ends in .html.")
    if len(runs) > 1 and (output is None or figures is not None or options["with_explanations"]):
        raise click.UsageError("Several runs need --output FILE.html. They cannot have --figures or --explain.")
    if options["weights"] is not None and not options["with_explanations"]:
        raise click.UsageError("--weights is for --explain: nothing else in a report needs the encoder.")
    if options["with_explanations"] and not options["with_images"]:
        raise click.UsageError("--explain shows images, but --no-images excludes them. Omit one of the two.")
    found = report_runs(runs, output=output, figures=figures, **options)
    emit(as_json, found.document(), found.text(), ("predict", "NEW_IMAGES", "--run", runs[0], "--output", "new.csv"))
