"""A cohort scored by what was fixed before, as a run folder that `report` shows."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hoarfrost.evaluation import Scores
from hoarfrost.evaluation.checks import Floats
from hoarfrost.experiment.assessment import Fixed, Samples, assess_samples
from hoarfrost.experiment.facts import dataset_facts, machine_used, predictions_of, versions_used
from hoarfrost.experiment.scored import ScoredTask, compared
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import Assessment, EmbeddingFacts, External, HeadResult, Run, RunConfig

UNKNOWN = Scores(0, None, {})  # of images that validated a model elsewhere


def bare_result(name: str, *, n_parameters: int = 0, n_members: int = 1) -> HeadResult:
    """Return the record of a model of which only the predictions on the cohort are known; it has no scores yet."""
    return HeadResult(
        name, n_parameters, None, None, None, 0, 0, "", val=UNKNOWN, test=None, seeds=(), n_members=n_members
    )


def scored(task: ScoredTask, result: HeadResult, p: Floats, fixed: Fixed) -> HeadResult:
    """Return a head's record with its scores on a cohort, and on the images that validated it if they are in the task.

    Raises
    ------
    TrainingError
        If the cohort has too few images of a class for a ROC AUC.
    """
    rows, validated = task.rows_of("test"), task.validated
    try:
        test = task.score(rows, p[rows], fixed.decision)
        val = task.score(validated, p[validated], fixed.decision) if len(validated) else result.val
    except ValueError as error:
        way_out = (
            ", or evaluate a head that was trained with --positive, for two classes" if len(task.names) > 2 else ""
        )
        raise TrainingError(f"{task.table.source}: {error}. Add images of this class{way_out}.") from error
    return replace(result, val=val, test=test, seeds=(), alarms=(), weights_file="")


def assessed(task: ScoredTask, head: str, p: Floats, fixed: Fixed, *, prevalence: float | None) -> Assessment:
    """Assess a head on a cohort, with thresholds and temperatures that were fixed before."""
    rows = task.rows_of("test")
    units = task.units(rows)
    attributes = {name: units.values([cells[i] for i in rows]) for name, cells in task.attributes().items()}
    samples = Samples("test", task.names, units, units.joined(p[rows]), attributes)
    return assess_samples(samples, fixed, head, prevalence=prevalence)


def evaluation_config(
    base: RunConfig, task: ScoredTask, embeddings: EmbeddingFacts, evaluates: str, command: Sequence[str], started: float,
    warnings: Sequence[str],
) -> RunConfig:  # fmt: skip
    """Return the configuration of an evaluation: that of the run that is evaluated, with the cohort as its dataset."""
    return replace(
        base,
        command=shlex.join(command),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        head_seconds={},
        streamed_bytes=None,
        dataset=replace(dataset_facts(task), patients_hint=""),
        embeddings=embeddings,
        versions=versions_used(),
        machine=machine_used(),
        warnings=tuple(warnings),
        evaluates=evaluates,
    )


def evaluation_run(
    directory: Path, task: ScoredTask, heads: Sequence[HeadResult], selected: str, probabilities: Mapping[str, Floats],
    assessment: Assessment, config: RunConfig, external: External,
) -> Run:  # fmt: skip
    """Return an evaluation as a run: several models are compared with the selected one on the same images."""
    return Run(
        directory=directory,
        config=config,
        selected=selected,
        heads=tuple(heads),
        references=(),
        cross_validation=None,
        learning_curve=(),
        history=(),
        predictions=predictions_of(task, probabilities),
        comparisons=compared(task, probabilities, selected, task.rows_of("test")) if len(heads) > 1 else (),
        assessment=assessment,
        external=external,
        attributes={} if config.embeddings.cache else task.attributes(),
    )
