"""Predictors from what `train` wrote: a run, or a head file."""

from dataclasses import replace
from pathlib import Path

from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.heads.files import SavedHead, read_head
from hoarfrost.heads.specs import parse_head
from hoarfrost.inference.predict.predictor import COVERAGE, FALSE_ALARMS, Predictor
from hoarfrost.runs import RunHeads, read_heads


def open_predictor(
    source: Path, head: str | None = None, *, coverage: float = COVERAGE, false_alarms: float = FALSE_ALARMS
) -> Predictor:
    """Open a head of a run, or a head file.

    Parameters
    ----------
    source : Path
        The run folder, or a head file.
    head : str, optional
        One of the run's heads; by default the selected one.
    coverage, false_alarms : float
        See `Predictor`.

    Raises
    ------
    RunError
        If the source is neither, is damaged or of another version, or the run has no such head.
    """
    saved = run_head(read_heads(source), head) if source.is_dir() else read_head(source)
    return Predictor(saved, coverage=coverage, false_alarms=false_alarms)


def run_head(run: RunHeads, name: str | None = None) -> SavedHead:
    """Read one of a run's heads, by default the selected one, with the place where the run found its weights."""
    path = run.file_of(run.selected if name is None else _full_name(run, name))
    saved, facts = read_head(path), run.config.embeddings
    if saved.header.fingerprint.digest != facts.fingerprint:
        raise RunError(
            f"{path} belongs to another run: the head was trained on embeddings with another fingerprint than those of "
            f"{run.directory}. Restore the run's own file, or train again."
        )
    return replace(saved, header=replace(saved.header, weights_path=facts.weights_path))


def _full_name(run: RunHeads, name: str) -> str:
    """Return the name of a head by its specification, in any spelling."""
    names = [head.name for head in run.heads]
    try:
        found = name if name in names else parse_head(name).name
    except TrainingError:
        found = name
    if found not in names:
        raise RunError(f"--head {name}: {run.directory} has no such head. Its heads: {', '.join(names)}.")
    return found
