"""Commands before a study: plan."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import PathType, ShareType

_SHARE = ShareType(0, 1, min_open=True, max_open=True)


@click.command(cls=opts.Command)
@opts.option(
    "--run", "Assume the results of this run: prevalence, ROC AUC, predicted probabilities, operating point and images "
    "per patient.", type=PathType(), metavar="DIR",
)  # fmt: skip
@opts.option("--prevalence", "Share of positive patients in the new data.", type=_SHARE, metavar="SHARE")
@opts.option("--auc", "ROC AUC that is expected.", type=ShareType(0.5, 1, min_open=True, max_open=True), metavar="AUC")
@opts.option(
    "--width", "Wanted width of the 95% intervals of ROC AUC, sensitivity and specificity.", type=_SHARE, default=0.1,
    metavar="WIDTH",
)  # fmt: skip
@opts.option("--images-per-patient", "Images of one patient.  [default: 1]", type=ShareType(1, 1e6), metavar="N")
@opts.option(
    "--icc", "Correlation between images of one patient, 0 to 1. At 1 they count as one image.  [default: that of the run, "
    "else 1]", group=opts.DATA, type=ShareType(0, 1), metavar="ICC",
)  # fmt: skip
@opts.option(
    "--sensitivity", "Sensitivity that is expected.", group=opts.SCORING, type=ShareType(0, 1), metavar="SHARE"
)
@opts.option(
    "--specificity", "Specificity that is expected.", group=opts.SCORING, type=ShareType(0, 1), metavar="SHARE"
)
@opts.option(
    "--calibration-width", "Wanted width of the 95% intervals of calibration slope and observed/expected.",
    group=opts.SCORING, type=ShareType(0, 10, min_open=True), default=0.2, metavar="WIDTH",
)  # fmt: skip
@opts.option(
    "--linear-predictor", "Mean and standard deviation of the predicted log-odds, if they are normal.  [default: those of "
    "the run, or, without one or with --auc, normal in each class, for the ROC AUC]", group=opts.SCORING, type=float,
    nargs=2, metavar="MEAN SD",
)  # fmt: skip
@opts.json_flag
def plan(
    run: Path | None, width: float, calibration_width: float, linear_predictor: tuple[float, float] | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Show how many patients an external validation needs for intervals of a wanted width, before any training.

    Methods: Riley et al. (2021), Statistics in Medicine 40, 4230-4251. Prevalence and ROC AUC are
    required, or a run that has them. Sensitivity and specificity are planned if they are given, or known from the run.
    Where a run does not know patients, each image counts as one.

    Example:
      $ hoarfrost plan --prevalence 0.3 --auc 0.85 --sensitivity 0.9 --specificity 0.8
         quantity           assumed  width  patients  cases
         ROC AUC            0.850    0.10   277       84
      *  calibration slope  1.000    0.20   1,803     541
         observed/expected  1.000    0.20   900       270
         sensitivity        0.900    0.10   470       141
         specificity        0.800    0.10   352       106
      * calibration slope needs most: 1,803 patients, 541 of them positive
      ...

    More examples:
      hoarfrost plan --prevalence 0.018 --auc 0.8 --linear-predictor -5 2.5 --calibration-width 0.3
      hoarfrost plan --prevalence 0.3 --auc 0.85 --images-per-patient 4 --icc 0.5
      hoarfrost plan --run runs/first --width 0.05
    """
    from hoarfrost.cli.console.summaries import plan_text
    from hoarfrost.report.planning import plan_of

    _check(run, given, linear_predictor)
    widths = {"width": width, "calibration_width": calibration_width}
    try:
        found = plan_of(run, given, linear_predictor=linear_predictor, **widths)
    except ValueError as error:
        raise click.UsageError(f"No plan for these values: {error}.") from error
    document = {**dataclasses.asdict(found), "largest": found.largest.quantity}
    opts.emit(as_json, document, plan_text(found))


def _check(run: Path | None, given: dict[str, Any], linear_predictor: tuple[float, float] | None) -> None:
    """Refuse options that lack others, or that no study has."""
    if run is None and None in (given["prevalence"], given["auc"]):
        raise click.UsageError("Pass --prevalence and --auc, or a run with --run DIR.")
    if run is None and given["icc"] is not None and (given["images_per_patient"] or 1) == 1:
        raise click.UsageError("--icc: pass --images-per-patient too; with one image per patient it changes nothing.")
    if linear_predictor is not None and not all(map(math.isfinite, linear_predictor)):
        raise click.UsageError("--linear-predictor: mean and standard deviation must be finite numbers.")
    if linear_predictor is not None and not linear_predictor[1] > 0:
        raise click.UsageError("--linear-predictor: the standard deviation must be above 0.")
