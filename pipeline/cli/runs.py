"""Commands on runs: train, report, compare."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import NamesType, PathType, RuleType, ShareType, SizeType
from hoarfrost.heads.config import TrainingConfig


def _training(name: str, text: str, kind: click.ParamType[Any]) -> Callable[[opts.Function], opts.Function]:
    """Add an option with the default of TrainingConfig."""
    default = getattr(TrainingConfig, name.removeprefix("--").replace("-", "_"))
    return opts.option(name, text, group=opts.TRAINING, type=kind, default=default)


@click.command(cls=opts.Command)
@opts.option(
    "--cache caches", "The cache of embeddings, one HDF5 file. Repeat it for several encoders: heads then take their "
    "embeddings of an image side by side.", type=PathType(dir_okay=False), required=True, multiple=True, metavar="FILE",
)  # fmt: skip
@opts.run
@opts.option("--positive", "Label that counts as class 1. May be repeated.", multiple=True, metavar="LABEL")
@opts.option("--head heads", "Head to train, see above. May be repeated.", multiple=True, metavar="SPEC")
@opts.option(
    "--folds n_folds", "Also cross-validate the whole procedure: train and select within each fold, and score the pooled "
    "predictions of what the folds left out.", type=click.IntRange(2, 100),
)  # fmt: skip
@opts.option(
    "--views", "Views of the cache that heads look at, such as 224,224:flip. auto compares each size and geometry with all "
    "of them, and chooses by out-of-fold loss.", group=opts.DATA, default="auto", metavar="auto|VIEW,...",
)  # fmt: skip
@opts.option("--dataset", "Dataset of the cache. Required if the cache has several.", group=opts.DATA, metavar="NAME")
@opts.option("--multilabel", "Images may have several labels, in columns of 0 and 1.", group=opts.DATA, is_flag=True)
@opts.option(
    "--label labels", "Label column for --multilabel. May be repeated.  [default: all columns of 0 and 1]",
    group=opts.DATA, multiple=True, metavar="COLUMN",
)  # fmt: skip
@opts.option(
    "--near-duplicates",
    "group: without patients, near-identical images stay together in splits and folds. warn: only warn of them. "
    "ignore: do not search for them.",
    group=opts.DATA, type=click.Choice(["group", "warn", "ignore"]), default="group",
)  # fmt: skip
@opts.option(
    "--allow-leakage", "Continue even if two splits share patients or identical images.", group=opts.DATA, is_flag=True
)
@opts.option(
    "--allow-conflicts", "Continue even if more than one in 200 images has two labels (the same bytes, in two "
    "classes).", group=opts.DATA, is_flag=True,
)  # fmt: skip
@opts.option(
    "--splits-from", "Keep the splits of this earlier run. Only images and patients that it did not have are assigned.",
    group=opts.DATA, type=PathType(), metavar="DIR",
)  # fmt: skip
@opts.option(
    "--lock-test", "Fix the analysis plan before training, and show no test score. Each later look at them, such as by "
    "`report`, is counted and reported.", group=opts.DATA, is_flag=True,
)  # fmt: skip
@opts.option(
    "--cross-fit/--no-cross-fit", "Predict every image outside of the test split by heads that did not learn from it, and "
    "select by these predictions. --no-cross-fit: set a validation split aside.  [default: cross-fit, unless the dataset "
    "has a validation split or --patience is given]", group=opts.DATA, default=None,
)  # fmt: skip
@opts.option(
    "--select", "mean: the mean of all kinds of head, weighted by their out-of-fold loss. best: the one head with the "
    "lowest out-of-fold loss.", group=opts.TRAINING, type=click.Choice(["mean", "best"]), default="mean",
)  # fmt: skip
@opts.option(
    "--grid grids", "Train every head with each of these values of an option, such as lr, dropout or C. May be repeated.",
    group=opts.TRAINING, multiple=True, metavar="KEY=V,V",
)  # fmt: skip
@_training(
    "--seeds", "Trainings of each head on the same images.  [default: so many that the head has its members]",
    click.IntRange(1, 100),
)  # fmt: skip
@_training("--seed", "First seed, for splits, initial weights and batches.", click.IntRange(0))
@_training(
    "--epochs", "Passes over the training images.  [default: as many as make 300 to 4,000 steps]", click.IntRange(1)
)
@_training(
    "--patience", "Stop a head after this many epochs without a lower validation loss. Needs a validation split.  "
    "[default: all epochs]", click.IntRange(1),
)  # fmt: skip
@_training(
    "--batch-size",
    "Images in one training step.  [default: 32 to 512, by the number of images]",
    click.IntRange(1, 1 << 20),
)
@_training(
    "--schedule", "Schedule of the learning rate. one-cycle and cosine rise first, and end at zero.",
    click.Choice(["one-cycle", "cosine", "constant"]),
)  # fmt: skip
@_training(
    "--class-weight", "balanced: each class has the same weight in the loss.", click.Choice(["none", "balanced"])
)
@_training("--label-smoothing", "Share of each label that is spread over all classes.", ShareType(0, 1, max_open=True))
@opts.option(
    "--per-patient", "Score patients instead of images, by the mean or the maximum of their images' probabilities.",
    group=opts.SCORING, type=click.Choice(["mean", "max"]),
)  # fmt: skip
@opts.option(
    "--prevalence",
    "Prevalence of the positive class where the head will be used. Adds predictive values and net benefit for it.",
    group=opts.SCORING, type=ShareType(0, 1, min_open=True, max_open=True), metavar="SHARE",
)  # fmt: skip
@opts.option(
    "--operating-point",
    "Rule of the threshold that decides accuracy, the confusion matrix and what `predict` reports: youden, "
    "sensitivity=0.95, specificity=0.95 or threshold=0.3.",
    group=opts.SCORING, type=RuleType(), default="youden", metavar="RULE",
)  # fmt: skip
@opts.option(
    "--covariates", "Attribute columns, such as age,sex. Adds a model on them alone and one on both, and by how much images "
    "improve on them.", group=opts.SCORING, type=NamesType(), default=(), metavar="COLUMN,...",
    show_default=False,
)  # fmt: skip
@opts.option(
    "--suspects-in-test", "Also list images of the test split among the labels to check. Labels that are corrected there by "
    "this list make test scores too high.", group=opts.SCORING, is_flag=True,
)  # fmt: skip
@opts.option(
    "--repeats n_repeats", "Also repeat the whole procedure on this many random splits: shows how much the ROC AUC and each "
    "image's probability depend on the draw.", group=opts.SCORING, type=click.IntRange(2, 1000), metavar="N",
)  # fmt: skip
@opts.option(
    "--leave-out", "Also train without each value of this column (a site, a scanner) and score it there: what a new site may "
    "expect.", group=opts.SCORING, metavar="COLUMN",
)  # fmt: skip
@opts.option(
    "--learning-curve with_learning_curve",
    "Also train on 5, 10, 20 and 50% of the training patients.",
    group=opts.SCORING,
    is_flag=True,
)
@opts.option(
    "--memory-limit",
    "Read embeddings from the cache in parts if they need more memory (1GB, 500MB).  [default: half of the memory]",
    group=opts.SPEED, type=SizeType(), metavar="SIZE",
)  # fmt: skip
@opts.device_among("auto", "cpu", "cuda")
@opts.option("--overwrite", "Replace an earlier run in DIR even if it has a report.", group=opts.OTHER, is_flag=True)
@opts.option(
    "--no-digests with_digests", "Leave short digests of the training images out of head files. `evaluate --head` then "
    "cannot find training images in a cohort.", group=opts.OTHER, is_flag=True, flag_value=False, default=True,
)  # fmt: skip
@opts.option(
    "--tensorboard with_tensorboard", "Also write TensorBoard logs to DIR/tensorboard.", group=opts.OTHER, is_flag=True
)
@opts.json_flag
def train(
    caches: tuple[Path, ...], run: Path, heads: tuple[str, ...], grids: tuple[str, ...], multilabel: bool,
    labels: tuple[str, ...], as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train heads on cached embeddings, score them, and write a run folder. No image is opened.

    Heads: logistic (logistic regression), mlp:256 (a hidden layer of 256 units), mlp:256x6 (six of them), quadratic (a
    quadratic kernel), linear. Options follow after commas: mlp:256,dropout=0.2,members=40 or logistic,C=0.01. The default
    heads are logistic, mlp:256 and quadratic. Their mean, weighted by out-of-fold loss, is selected.

    A run that is already in DIR is replaced once the new one is complete. If `report` has written its report.html there,
    --overwrite is required. A folder with any other files is never replaced.

    Example:
      $ hoarfrost train --cache images.h5 --run runs/first --positive malignant
         head                             members  parameters  out-of-fold AUC  test AUC (95% CI)       test accuracy
         logistic,C=1                     5        5,130       0.996            0.998 (0.984 to 1.000)  0.964
         mlp:256                          20       2,636,840   0.996            0.997 (0.984 to 1.000)  0.964
      *  mean                             25       2,641,970   0.996            0.998 (0.986 to 1.000)  0.982
         logistic regression (C = 1)                           0.996            0.998 (0.984 to 1.000)  0.964
      ...

    More examples:
      hoarfrost train --cache images.h5 --run runs/wide --head mlp:512 --head mlp:128x3,dropout=0.2
      hoarfrost train --cache xrays.h5 --run runs/findings --multilabel --label effusion --label mass
      hoarfrost train --cache resnet.h5 --cache uni.h5 --run runs/both
      hoarfrost train --cache images.h5 --run runs/clinical --covariates age,sex --folds 5
      hoarfrost train --cache images.h5 --run runs/grid --grid lr=1e-4,1e-3 --grid weight_decay=0,1e-2,1e-1 --seeds 5
    """
    from hoarfrost.cli.console.progress import interruptible, training_progress
    from hoarfrost.cli.console.training import train_document, train_text
    from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
    from hoarfrost.heads.specs import cross_heads, parse_heads

    training = TrainingConfig(**{field.name: options.pop(field.name) for field in dataclasses.fields(TrainingConfig)})
    config = ExperimentConfig(training=training, label_columns=labels if multilabel or labels else None, **options)
    specs = cross_heads(parse_heads(heads), grids)
    with interruptible(run), training_progress(len(specs), config) as show:
        result = run_experiment(caches, run, specs, config, command=["hoarfrost", *sys.argv[1:]], on_progress=show)
    opts.emit(as_json, train_document(result), train_text(result), ("report", "--run", run))


@click.command(cls=opts.Command)
@opts.option(
    "--run runs", "The run folder. Repeat it to compare several runs side by side.",
    type=PathType(), multiple=True, metavar="DIR",
)  # fmt: skip
@opts.option(
    "--aggregate aggregates", "In place of --run: what a site shared, from evaluate --aggregate-only. Repeat it to pool "
    "several sites.", group=opts.CONTENT, type=PathType(dir_okay=False), multiple=True, metavar="FILE.json",
)  # fmt: skip
@opts.option(
    "--output", "The report file. Required for several runs and for --aggregate.  [default: DIR/report.html]",
    type=PathType(dir_okay=False), metavar="FILE.html",
)  # fmt: skip
@opts.option(
    "--figures", "Also write each figure as SVG and PNG, and each table as CSV, to this folder.",
    type=PathType(), metavar="FOLDER",
)  # fmt: skip
@opts.option(
    "--explain with_explanations",
    "Show the errors with maps of what speaks for a class. The encoder runs over these images again.",
    is_flag=True,
)  # fmt: skip
@opts.option(
    "--images/--no-images with_images", "Include thumbnails of images, or no pixels of any image.",
    default=True,
)  # fmt: skip
@opts.option(
    "--images-from", "Also show images from this folder or host. Otherwise only those below the dataset's own folder: a "
    "cache from others may name any path or URL. Repeatable.",
    group=opts.CONTENT, multiple=True, metavar="FOLDER|HOST",
)  # fmt: skip
@opts.option(
    "--map/--no-map with_map", "Include a map of the embeddings, or omit it.",
    group=opts.CONTENT, default=True,
)  # fmt: skip
@opts.weights
@opts.json_flag
def report(
    runs: tuple[Path, ...], aggregates: tuple[Path, ...], output: Path | None, figures: Path | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Write the report of a run, one self-contained HTML file, compare several runs side by side, or pool several sites.

    Example:
      $ hoarfrost report --run runs/first
      report runs/first/report.html

    More examples:
      hoarfrost report --run runs/first --figures figures/
      hoarfrost report --run runs/first --explain
      hoarfrost report --run runs/first --run runs/wide --output first-wide.html
      hoarfrost report --aggregate north.json --aggregate south.json --output pooled.html
    """
    from hoarfrost.report.outputs import report_pooled, report_runs

    _check_report(runs, aggregates, output, figures, options)
    if aggregates:
        assert output is not None
        found = report_pooled(aggregates, output)
    else:
        found = report_runs(runs, output=output, figures=figures, **options)
    following = ("predict", "NEW_IMAGES", "--run", runs[0], "--output", "new.csv") if runs else ()
    opts.emit(as_json, found.document(), found.text(), following)


def _check_report(
    runs: tuple[Path, ...], aggregates: tuple[Path, ...], output: Path | None, figures: Path | None,
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Refuse options that contradict one another, or would have no effect."""
    if not runs and not aggregates:
        raise click.MissingParameter(param_hint="'--run' or '--aggregate'", param_type="option")
    if runs and aggregates:
        raise click.UsageError("--aggregate pools sites in place of --run. Omit one of the two.")
    if aggregates and (output is None or figures is not None or options["with_explanations"]):
        raise click.UsageError("--aggregate needs --output FILE.html. It cannot have --figures or --explain.")
    if output is not None and output.suffix.lower() not in {".html", ".htm"}:
        raise click.UsageError(f"--output {output}: the report is HTML. Choose a name that ends in .html.")
    if len(runs) > 1 and (output is None or figures is not None or options["with_explanations"]):
        raise click.UsageError("Several runs need --output FILE.html. They cannot have --figures or --explain.")
    if options["weights"] is not None and not options["with_explanations"]:
        raise click.UsageError("--weights is for --explain: nothing else in a report needs the encoder.")
    if options["with_explanations"] and not options["with_images"]:
        raise click.UsageError("--explain shows images, but --no-images excludes them. Omit one of the two.")


@click.command(cls=opts.Command)
@click.argument("runs", type=PathType(), nargs=-1, required=True, metavar="RUN RUN...")
@opts.option(
    "--output", "Also write the runs side by side as a page.", type=PathType(dir_okay=False), metavar="FILE.html"
)
@opts.json_flag
def compare(runs: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Compare runs on the same test images: other encoders, heads or settings, each with the first run.

    The selected heads are compared by paired tests of their ROC AUCs, corrected for the number of runs. To give runs the
    same splits, train on the same dataset with the same seed, or with --splits-from.

    Example:
      $ hoarfrost compare runs/resnet18 runs/dinov2
      A  runs/resnet18
      B  runs/dinov2
      ...

    More examples:
      hoarfrost compare runs/resnet18 runs/resnet50 runs/dinov2 --output encoders.html
    """
    from hoarfrost.cli.console.comparison import comparison_text
    from hoarfrost.report.outputs import compare_runs

    if len(runs) < 2:
        raise click.UsageError("Name two runs or more: each is compared with the first.")
    if output is not None and output.suffix.lower() not in {".html", ".htm"}:
        raise click.UsageError(f"--output {output}: the page is HTML. Choose a name that ends in .html.")
    found = compare_runs(runs, output=output)
    opts.emit(as_json, found.document(), comparison_text(found))
