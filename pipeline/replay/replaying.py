"""A run computed again: digests, the predictions of its heads from the cache, and the figures from the predictions."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from hoarfrost.evaluation.checks import Floats
from hoarfrost.features.errors import CacheError, HoarfrostError, RunError
from hoarfrost.heads.files import SavedHead, read_head
from hoarfrost.inference.sources import RunSource, opened_source
from hoarfrost.replay.comparing import Difference, as_written_now, differences, is_in, numbers
from hoarfrost.replay.figures import OF_COLUMNS, figures_again, is_of_predictions, place_of_head
from hoarfrost.replay.findings import RETRAIN, Findings
from hoarfrost.replay.rebuilding import predicted_again, task_of
from hoarfrost.replay.retraining import FITTED_AGAIN, fitted_again, trained_again
from hoarfrost.runs import Run, hidden, metrics_document, read_heads, read_run
from hoarfrost.runs.digests import changed_files
from hoarfrost.runs.folder import METRICS
from hoarfrost.runs.sealed import SEALED

_PARTS = {
    "learning_curve": f"The heads of the learning curve are not saved. {RETRAIN}",
    "left_out": f"The heads without a site are not saved. {RETRAIN}",
    "covariates": f"The models with covariates need heads of folds. {RETRAIN}",
    "views": f"The heads of other views are not saved. {RETRAIN}",
    "repeats": f"The heads of repeated splits are not saved. {RETRAIN}",
}
_OTHER_IMAGES = "The dataset has other images in the cache now than the run has."


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes
    ----------
    directory : Path
    changed : tuple of str
        Files that are missing, or whose digest is not the recorded one. Nothing else was compared then.
    n_probabilities, n_figures : int
        How many were computed again.
    largest : float
        The largest difference of a probability.
    differing : tuple of Difference
    skipped : tuple of str
        What could not be computed again, and why, in sentences.
    not_compared : tuple of str
        The places of `metrics.json` that `skipped` is about, as "heads[*].seeds", each with all that is inside of it.
    """

    directory: Path
    changed: tuple[str, ...] = ()
    n_probabilities: int = 0
    n_figures: int = 0
    largest: float = 0.0
    differing: tuple[Difference, ...] = ()
    skipped: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether all that could be computed again is what was recorded."""
        return not self.changed and not self.differing


def replay(directory: Path, *, retrain: bool = False) -> Replay:
    """Compute the predictions and figures of a run again, from its cache and its heads, and compare them.

    Parameters
    ----------
    directory : Path
        A run folder of `train` or `evaluate`.
    retrain : bool
        Train everything again in place of using the heads, with the recorded settings and seeds.

    Returns
    -------
    Replay

    Raises
    ------
    RunError
        If `directory` is not a run; or to retrain, if it is an evaluation or does not record its settings.
    CacheError
        To retrain, as `opened_source`.

    Notes
    -----
    Figures are computed from the recorded predictions where these are within `CLOSE` of what the heads predict now, so that
    a last digit changes no rank; otherwise from the new ones.
    """
    changed = changed_files(directory)
    if changed:
        return Replay(directory, changed)
    run, found = read_run(directory, before_look=True), Findings()
    found.is_sealed = (directory / SEALED).is_file()
    again = _trained_again(run, found) if retrain else _computed_again(run, found)
    if found.is_sealed:
        again = hidden(again)
        found.skip("Scores of the locked test split: nobody has looked at them yet. Replay again afterwards.")
    found.skip_parts(run)
    recorded = json.loads((directory / "metrics.json").read_text(encoding="utf-8", errors="surrogateescape"))
    as_read, document = (
        json.loads(json.dumps(metrics_document(one))) for one in (hidden(run) if found.is_sealed else run, again)
    )
    recorded |= {name: as_written_now(recorded[name], as_read[name]) for name in METRICS if name in recorded}
    n = _compare_documents(recorded, document, found)
    return Replay(
        directory, (), found.n_probabilities, n, found.largest, tuple(found.differing), tuple(found.skipped),
        tuple(found.places),
    )  # fmt: skip


def _compare_documents(recorded: Mapping[str, Any], again: Mapping[str, Any], found: Findings) -> int:
    """Compare two contents of `metrics.json`, and return how many numbers were compared."""
    unknown = [name for name in recorded if name not in again]
    if unknown:
        found.skip(f"{', '.join(unknown)}: this version of hoarfrost does not know these parts.", *unknown)
    is_skipped = is_in(found.places)
    for name, value in recorded.items():
        found.differing += differences(value, again.get(name), name, is_skipped)
    return sum(not is_skipped(place) for name, value in recorded.items() for place, _ in numbers(value, name))


def _trained_again(run: Run, found: Findings) -> Run:
    """Train a run again, and compare the predictions of its heads."""
    asked = run.config.options
    if run.config.evaluates:
        raise RunError(
            f"--retrain: {run.directory} is an evaluation, which trained nothing. Replay the run it evaluated."
        )
    if asked is None:
        raise RunError(
            f"--retrain: {run.directory} does not record all its settings: an earlier version wrote it. Omit --retrain, or "
            "train it again."
        )
    with opened_source(run) as source:
        if _has_other_images(run, source):
            raise RunError(
                f"--retrain: {run.directory}: {_OTHER_IMAGES} Restore the cache that it was trained from, or omit --retrain."
            )
        again = trained_again(run, asked, source.cache)
    for name, recorded in run.predictions.probabilities.items():
        if name in again.predictions.probabilities:
            found.compare_predictions(run, name, again.predictions.probabilities[name], recorded)
    return again


def _computed_again(run: Run, found: Findings) -> Run:
    """Compute a run again from its cache and its heads, as far as these are there."""
    found.parts |= _PARTS
    with ExitStack() as stack:
        source = _source(run, stack, found)
        heads = dict(_heads(run, found))
        probabilities = _predictions(run, heads, source, found)
        has_columns = source is not None or bool(run.attributes)
        again = figures_again(run, task_of(run, source), heads, probabilities, found, has_columns=has_columns)
        reason = _why_not_fitted(run, source)
        if not reason:
            assert source is not None
            assert run.config.options is not None
            return fitted_again(again, run.config.options, source.cache)
    found.parts |= dict.fromkeys(FITTED_AGAIN, reason)
    others = {i: one.name for i, one in enumerate(run.comparisons) if one.name not in run.predictions.probabilities}
    if others:
        found.skip(
            f"comparisons with {', '.join(others.values())}, and Holm's correction over them: predictions not saved.",
            "comparisons[*].p_holm", *(f"comparisons[{i}]" for i in others),
        )  # fmt: skip
    return again


def _why_not_fitted(run: Run, source: RunSource | None) -> str:
    """Return why references and audits are not fitted again; empty if they are."""
    if run.config.evaluates:
        return "The classifiers on the cohort's embeddings are not fitted again."
    if source is None:
        return "It needs the cache."
    if _has_other_images(run, source):
        return _OTHER_IMAGES
    if run.config.options is None:
        return "An earlier version wrote the run, and did not record its settings."
    return ""


# -- predictions --------------------------------------------------------------------------------------------------------


def _source(run: Run, stack: ExitStack, found: Findings) -> RunSource | None:
    if not run.config.embeddings.cache:
        found.skip("predictions.csv: the embeddings were not kept. Figures are computed from the predictions.")
        return None
    try:
        return stack.enter_context(opened_source(run))
    except CacheError as error:
        found.skip(f"predictions.csv and subgroups: {error}", *OF_COLUMNS)
        return None


def _has_other_images(run: Run, source: RunSource) -> bool:
    """Return whether the dataset in the cache has other images than the run, or another order: rows are compared by place."""
    table = source.table
    return tuple(compress(table.paths, table.rows >= 0)) != tuple(run.predictions.paths)


def _heads(run: Run, found: Findings) -> Iterator[tuple[str, SavedHead]]:
    """Yield the heads of a run; of an evaluation, the head that it evaluated, from where that was."""
    if not run.config.evaluates:
        for one in run.heads:
            yield one.name, read_head(run.directory / one.weights_file)
        return
    place = place_of_head(run)
    try:
        yield run.selected, read_head(place if place.is_file() else read_heads(place).file_of(run.selected))
    except (HoarfrostError, StopIteration):
        if not is_of_predictions(run):
            found.skip(
                f"predictions.csv, scores, operating points and updates: {run.config.evaluates} is not at {place} now. Start "
                "the command in the folder where `evaluate` ran.",
                "heads", "comparisons", "assessment", "external.updates", "external.drops", "precision",
            )  # fmt: skip


def _predictions(
    run: Run, heads: Mapping[str, SavedHead], source: RunSource | None, found: Findings
) -> dict[str, Floats]:
    """Return the probabilities that figures are computed from: the recorded ones, or new ones where these differ."""
    result: dict[str, Floats] = {}
    for name, recorded in run.predictions.probabilities.items():
        result[name] = recorded
        if source is None or name not in heads:
            continue
        again = predicted_again(run, heads[name], source)
        if found.compare_predictions(run, name, again, recorded):
            result[name] = again
    return result
