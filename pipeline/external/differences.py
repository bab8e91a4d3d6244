"""A first look at a cohort, before any score: what differs from the training images, in plain words."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress

import numpy as np

from hoarfrost.evaluation import Share, wilson
from hoarfrost.evaluation.checks import Floats, Ints, binary_problems
from hoarfrost.evaluation.drops import drop_between
from hoarfrost.evaluation.subgroups import MISSING, MOST_VALUES, numbers_of, with_missing
from hoarfrost.experiment.acquisition import RecordedFacts, recorded_facts
from hoarfrost.experiment.task import Task
from hoarfrost.external.training_images import SeenImages, formats_of
from hoarfrost.heads.files import IMAGE, SavedHead
from hoarfrost.runs import CohortDifference
from hoarfrost.runs.external import NOVEL

LEAST_MOVED = 0.1  # share of images that would have to change their value
LEAST_SHIFT = 0.25  # of a mean, in standard deviations
LEAST_RATIO = 1.5  # of median file sizes
ROUNDING = 1e-9  # of a mean: what a sum of equal numbers leaves
SHOWN = 4
PIXELS = "pixel sizes and grey levels"
"""A characteristic that is not known where one of the caches does not record it."""


def differences_of(
    task: Task, head: SavedHead, seen: SeenImages | None, novel: Share | None, expected: float
) -> tuple[CohortDifference, ...]:
    """Compare a cohort with the training images, as far as the run, its cache or the head file describe them.

    Parameters
    ----------
    task : Task
        The cohort.
    head : SavedHead
    seen : SeenImages or None
        None where the run is not known.
    novel : Share or None
        Images of the cohort that are farther from the training images than novelty's limit; None without a limit.
    expected : float
        That share among images like the training images.
    """
    return tuple(_differences(task, head, seen, novel, expected))


def _differences(
    task: Task, head: SavedHead, seen: SeenImages | None, novel: Share | None, expected: float
) -> Iterator[CohortDifference]:
    paths = list(compress(task.table.paths, task.readable))
    known = [] if seen is None else seen.formats()
    yield _counted("format", known, formats_of(paths))
    sizes = np.empty(0, np.int64) if seen is None else seen.sizes
    yield _file_sizes(sizes, task.table.sizes[task.readable])
    if seen is not None and seen.facts is not None and task.facts is not None:
        yield from _of_files(*(recorded_facts(one, is_region=task.is_region) for one in (seen.facts, task.facts)))
    else:
        yield CohortDifference(PIXELS, "", "", differs=False)
    yield from _prevalences(task, head, seen)
    yield _per_patient(task, seen)
    if novel is not None:
        text = f"{_percent(novel.value)} ({novel.n_hits:,} of {novel.n:,} images)"
        is_more = novel.low is not None and novel.low > expected
        yield CohortDifference(NOVEL, _percent(expected), text, is_more)
    attributes = task.attributes()
    for name, cells in attributes.items():
        own = [] if seen is None else seen.attributes.get(name, [])
        yield _attribute(name, own, cells)
    known_columns = {} if seen is None else seen.attributes
    absent = [name for name in known_columns if name not in attributes and name not in task.names]
    if absent:
        yield CohortDifference("columns", ", ".join(absent), "not in the cohort", differs=True)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.0f}%"


def _counted(what: str, training: Sequence[str], cohort: Sequence[str]) -> CohortDifference:
    """Compare the values of a column: they differ if a tenth of the images would have to change theirs."""
    one, two = Counter(training), Counter(cohort)
    moved = (
        sum(abs(one[value] / len(training) - two[value] / len(cohort)) for value in one | two) / 2 if training else 0
    )
    is_new = bool(training) and any(n > LEAST_MOVED * len(cohort) for value, n in two.items() if value not in one)
    return CohortDifference(what, _shares(one), _shares(two), bool(moved > LEAST_MOVED or is_new))


def _shares(counts: Counter[str]) -> str:
    n = counts.total()
    if len(counts) > MOST_VALUES:
        return f"{len(counts):,} different values"
    parts = [f"{value} {_percent(number / n)}" for value, number in counts.most_common(SHOWN)]
    return ", ".join(parts) + (f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else "")


def _of_files(training: RecordedFacts, cohort: RecordedFacts) -> Iterator[CohortDifference]:
    """Compare what the caches recorded of the files: sizes, depths, kinds in headers, and grey levels."""
    for name, own in cohort.items():
        before = training[name]
        if isinstance(own, np.ndarray) and isinstance(before, np.ndarray):
            if np.isfinite(own).any() and np.isfinite(before).any():
                yield _numbers(name, before, own)
        elif any(before) or any(own):
            yield _counted(name, with_missing(list(before)), with_missing(list(own)))


def _file_sizes(training: Ints, cohort: Ints) -> CohortDifference:
    medians = [float(np.median(one[one >= 0])) if (one >= 0).any() else 0.0 for one in (training, cohort)]
    differs = min(medians) > 0 and max(medians) > LEAST_RATIO * min(medians)
    texts = [f"{median / 1000:,.0f} kB (median)" if median else "" for median in medians]
    return CohortDifference("file size", texts[0], texts[1] or "unknown", differs)


def _prevalences(task: Task, head: SavedHead, seen: SeenImages | None) -> Iterator[CohortDifference]:
    here = _shares_of_classes(task.y, len(task.names))
    there = {} if seen is None else _shares_of_classes(seen.y, len(task.names))
    recorded: Mapping[int, float] = {}
    if seen is None:
        fixed = next(one for one in head.validated if one.unit == IMAGE)
        recorded = dict(zip(here, fixed.prevalences, strict=False))
    for number, share in here.items():
        text = f"{_percent(share.value)} of {share.n:,} images"
        if number in there:
            change = drop_between(there[number], share)
            differs = change.interval is not None and not change.interval[0] <= 0 <= change.interval[1]
            before = f"{_percent(there[number].value)} of {there[number].n:,} images"
        else:
            before = _percent(recorded[number]) if number in recorded else ""
            low, high = share.interval or (0.0, 1.0)
            differs = number in recorded and not low <= recorded[number] <= high
        yield CohortDifference(f"prevalence of {task.names[number]}", before, text, differs)


def _shares_of_classes(y: Ints, n_classes: int) -> dict[int, Share]:
    return {number: wilson(int(one.sum()), len(one)) for number, _, one in binary_problems(y, n_classes)}


def _per_patient(task: Task, seen: SeenImages | None) -> CohortDifference:
    known = None if seen is None else seen.patients
    training = "" if known is None else f"{len(known) / len(set(known)):.1f}"
    cohort = "patients unknown" if task.patients is None else f"{len(task.y) / len(np.unique(task.patients)):.1f}"
    return CohortDifference("images per patient", training, cohort, task.patients is None and known is not None)


def _attribute(name: str, training: Sequence[str], cohort: Sequence[str]) -> CohortDifference:
    """Compare a column: numbers by their means, other values by their shares."""
    texts = with_missing(training), with_missing(cohort)
    numbers = [numbers_of(one) if one else None for one in texts]
    if numbers[1] is None or (training and numbers[0] is None):
        return _counted(name, *([value for value in one if value != MISSING] for one in texts))
    return _numbers(name, numbers[0], numbers[1])


def _numbers(name: str, training: Floats | None, cohort: Floats) -> CohortDifference:
    """Compare numbers by their means."""
    shift = 0.0
    if training is not None:
        (mean, spread), (own_mean, own_spread) = _mean(training), _mean(cohort)
        pooled, change = np.sqrt((spread**2 + own_spread**2) / 2), abs(mean - own_mean)
        shift = change / pooled if pooled > 0 else float(change > ROUNDING * abs(mean))
    before = "" if training is None else _mean_text(training)
    return CohortDifference(name, before, _mean_text(cohort), bool(shift > LEAST_SHIFT))


def _mean(numbers: Floats) -> tuple[float, float]:
    known = numbers[~np.isnan(numbers)]
    mean, spread = float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return mean, spread if spread > ROUNDING * abs(mean) else 0.0


def _mean_text(numbers: Floats) -> str:
    mean, spread = _mean(numbers)
    return f"mean {mean:.4g} (SD {spread:.3g})"
