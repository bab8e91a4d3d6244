"""The command that judges a finished model on labelled images, or by its predictions: evaluate."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import DataType, PathType, RuleType, ShareType

if TYPE_CHECKING:
    from hoarfrost.runs import Run

# What each of the two ways does not take.
_OF_IMAGES = (
    *(
        "data",
        "run",
        "head",
        "cache",
        "site",
        "allow_leakage",
        "max_pixels",
        "keep_ids",
        "weights",
        "device",
        "batch_size",
    ),
    *("workers", "label_separator", "image_root", "include", "exclude", "patient_from", "label_from"),
)
_OF_PREDICTIONS = ("positive", "probability_columns", "validation_split", "operating_point", "per_patient")
_FORMATS = "path or id, label, and probability, probability:CLASS, score or call"


@click.command(cls=opts.Command)
@click.argument("data", type=DataType(), required=False)
@opts.option("--run", "The run folder. Its selected head is evaluated.", type=PathType(), metavar="DIR")
@opts.option("--head", "Another head of the run. Without --run: a head file.", metavar="NAME|FILE")
@opts.option(
    "--predictions", f"Evaluate the predictions in this CSV in place of a head: {_FORMATS}. Repeat it to compare models.",
    type=PathType(dir_okay=False), multiple=True, metavar="FILE.csv",
)  # fmt: skip
@opts.option(
    "--output", "The folder to write.  [default: RUN-on-DATA beside the run, or FILE-evaluated]", type=PathType(),
    metavar="DIR",
)  # fmt: skip
@opts.option(
    "--aggregate-only aggregate", "Write this one file in place of a folder: tables without a row of a patient, for `report "
    "--aggregate`. Needs --name.", group=opts.OTHER, type=PathType(dir_okay=False), metavar="FILE.json",
)  # fmt: skip
@opts.option(
    "--cache", "Keep the cohort's embeddings in this cache, for the report's images and for other heads.  [default: they "
    "are not kept]", type=PathType(dir_okay=False), metavar="FILE",
)  # fmt: skip
@opts.option("--name", "The cohort's name.  [default: the name of its folder or file]", group=opts.DATA)
@opts.option(
    "--site", "The column whose values are sites: each gets its own drop.  [default: a column named site, hospital, "
    "center, scanner and the like]", group=opts.DATA, metavar="COLUMN",
)  # fmt: skip
@opts.option(
    "--allow-leakage", "Continue even if patients or images of DATA are among the training images.", group=opts.DATA,
    is_flag=True,
)  # fmt: skip
@opts.option(
    "--positive", "With --predictions: label that counts as class 1. May be repeated.", group=opts.DATA, multiple=True,
    metavar="LABEL",
)  # fmt: skip
@opts.option(
    "--probability-column probability_columns", "With --predictions: a model's column, if it is not named probability. May "
    "be repeated.", group=opts.DATA, multiple=True, metavar="NAME",
)  # fmt: skip
@opts.option(
    "--validation-split", "With --predictions: the split whose rows fix thresholds and temperature. The model must not have "
    "learned from them.", group=opts.DATA, default="val", metavar="NAME",
)  # fmt: skip
@opts.table
@opts.max_pixels
@opts.keep_ids
@opts.weights
@opts.option(
    "--prevalence", "Prevalence of the positive class where the model will be used. Adds predictive values and net "
    "benefit for it.", group=opts.SCORING, type=ShareType(0, 1, min_open=True, max_open=True), metavar="SHARE",
)  # fmt: skip
@opts.option(
    "--operating-point", "With --predictions: the rule of the threshold that decides: youden, sensitivity=0.95, "
    "specificity=0.95 or threshold=0.3, of scores on their own scale.", group=opts.SCORING, type=RuleType(of_scores=True),
    default="youden", metavar="RULE",
)  # fmt: skip
@opts.option(
    "--per-patient", "With --predictions: score patients, by the mean or the maximum of their rows' probabilities.",
    group=opts.SCORING, type=click.Choice(["mean", "max"]),
)  # fmt: skip
@opts.device
@opts.batch_size
@opts.workers
@opts.option(
    "--overwrite",
    "Replace an earlier evaluation in DIR even if it has a report, or FILE.json.",
    group=opts.OTHER,
    is_flag=True,
)
@opts.json_flag
def evaluate(data: Path | str | None, predictions: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Evaluate a trained head on labelled images of another cohort, or any model's predictions.

    DATA is what `extract` reads. The head's standardisation, weights, temperature, thresholds and conformal scores stay as
    they are. Patients and images that training saw are refused. The result is a folder that `report` shows: what differs
    from the training images, the drop from the internal test with its interval, and the whole assessment.

    With --predictions, no image and no head is needed. Thresholds are stated, or fixed on the rows of the split val, or
    cross-fitted. Several files are compared by paired tests.

    Example:
      $ hoarfrost evaluate hospital_b/ --run runs/first
      $ hoarfrost report --run runs/first-on-hospital_b

    More examples:
      hoarfrost evaluate hospital_b.csv --head mean.safetensors --output runs/b --site scanner
      hoarfrost evaluate --predictions vendor.csv --predictions ours.csv --positive malignant --output compared
    """
    from hoarfrost.cli.console.external import evaluate_text
    from hoarfrost.runs import metrics_document

    _check_way(predictions)
    found = _of_predictions(predictions, options) if predictions else _of_cohort(data, options)
    document = {**metrics_document(found), "run": str(found.directory)}
    following = () if options["aggregate"] else ("report", "--run", found.directory)
    opts.emit(as_json, document, evaluate_text(found, is_aggregate=bool(options["aggregate"])), following)


def _check_way(predictions: tuple[Path, ...]) -> None:
    """Refuse options that would have no effect, or neither images nor predictions."""
    context = click.get_current_context()
    if context.params["aggregate"] is not None:
        if context.params["name"] is None:
            raise click.UsageError("--aggregate-only needs --name NAME: what this site will be called beside others.")
        if context.params["output"] is not None:
            raise click.UsageError("--output has no effect with --aggregate-only, which writes no folder. Omit it.")
    if not predictions and context.params["data"] is None:
        raise click.UsageError("Name the cohort, DATA, or predictions with --predictions FILE.csv.")
    for parameter in context.command.params:
        is_given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if is_given and parameter.name in (_OF_IMAGES if predictions else _OF_PREDICTIONS):
            name = "DATA" if parameter.name == "data" else parameter.opts[0]
            way = "has no effect with --predictions" if predictions else "is for --predictions"
            raise click.UsageError(f"{name} {way}. Omit it.")


def _of_cohort(data: Path | str | None, options: Mapping[str, Any]) -> "Run":
    from hoarfrost.cli.console.progress import extraction_progress
    from hoarfrost.external.cohort import CohortConfig, evaluate_cohort

    assert data is not None
    own = {name: value for name, value in options.items() if name not in (*_OF_PREDICTIONS, "run", "head", "output")}
    where = {name: options[name] for name in ("run", "head")}
    with extraction_progress() as show:
        return evaluate_cohort(
            data, options["output"], **where, config=CohortConfig.of(**own), command=["hoarfrost", *sys.argv[1:]],
            on_progress=show,
        )  # fmt: skip


def _of_predictions(files: tuple[Path, ...], options: Mapping[str, Any]) -> "Run":
    from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
    from hoarfrost.external.table import ColumnOptions

    columns = ColumnOptions(options["positive"], options["probability_columns"], options["table"])
    shared = ("operating_point", "validation_split", "per_patient", "prevalence", "name", "aggregate", "overwrite")
    config = PredictionsConfig(columns=columns, **{name: options[name] for name in shared})
    return evaluate_predictions(files, options["output"], config=config, command=["hoarfrost", *sys.argv[1:]])
