"""The command that judges a finished model on labelled images: evaluate."""

import sys
from pathlib import Path
from typing import Any

import click

from hoarfrost.cli import options as opts
from hoarfrost.cli.types import DataType, PathType, ShareType


@click.command(cls=opts.Command)
@click.argument("data", type=DataType())
@opts.option("--run", "The run folder. Its selected head is evaluated.", type=PathType(), metavar="DIR")
@opts.option("--head", "Another head of the run. Without --run: a head file.", metavar="NAME|FILE")
@opts.option(
    "--output", "The folder to write.  [default: beside the run, RUN-on-COHORT]", type=PathType(), metavar="DIR"
)
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
@opts.table
@opts.max_pixels
@opts.keep_ids
@opts.weights
@opts.option(
    "--prevalence", "Prevalence of the positive class where the head will be used. Adds predictive values and net "
    "benefit for it.", group=opts.SCORING, type=ShareType(0, 1, min_open=True, max_open=True), metavar="SHARE",
)  # fmt: skip
@opts.device
@opts.batch_size
@opts.workers
@opts.option(
    "--overwrite", "Replace an earlier evaluation in DIR even if it has a report.", group=opts.OTHER, is_flag=True
)
@opts.json_flag
def evaluate(
    data: Path | str, run: Path | None, head: str | None, output: Path | None, as_json: bool, **options: Any
) -> None:
    """Evaluate a trained head on labelled images of another cohort, with everything frozen.

    DATA is what `extract` reads. The head's standardisation, weights, temperature, thresholds and conformal scores stay as
    they are. Patients and images that training saw are refused. The result is a folder that `report` shows: what differs
    from the training images, the drop from the internal test with its interval, and the whole assessment.

    Example:
      $ hoarfrost evaluate hospital_b/ --run runs/first
      $ hoarfrost report --run runs/first-on-hospital_b

    More examples:
      hoarfrost evaluate hospital_b.csv --head mean.safetensors --output runs/b --site scanner
    """
    from hoarfrost.cli.console.external import evaluate_text
    from hoarfrost.cli.console.progress import extraction_progress
    from hoarfrost.external.cohort import CohortConfig, evaluate_cohort
    from hoarfrost.runs import metrics_document

    config, command = CohortConfig.of(**options), ["hoarfrost", *sys.argv[1:]]
    with extraction_progress() as show:
        found = evaluate_cohort(data, output, run=run, head=head, config=config, command=command, on_progress=show)
    document = {**metrics_document(found), "run": str(found.directory)}
    opts.emit(as_json, document, evaluate_text(found), ("report", "--run", found.directory))
