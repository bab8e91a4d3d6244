"""Whether a cohort shares patients, images or near-identical images with those that training saw."""

from collections.abc import Iterable, Iterator

import numpy as np

from hoarfrost.evaluation.leakage import Leakage, SharedPair, SimilarPair, find_leakage
from hoarfrost.experiment.splits import EXTERNAL
from hoarfrost.experiment.task import Task
from hoarfrost.external.training_images import SeenImages
from hoarfrost.features.errors import TrainingError
from hoarfrost.features.fingerprint import FILE_BYTES
from hoarfrost.heads.seen import Digests, digests_of
from hoarfrost.runs import OverlapCheck
from hoarfrost.training.rows import gathered

PATIENTS, BYTES, NEAR = "patients", "identical images", "near-identical images"
NO_RUN = "a head file has no patients and no embeddings of its training images. Name its run with --run to check this"
NO_DIGESTS_HERE = "this head file has no digests of its training images. Name its run with --run to check this"
MANY = "There are too many images to compare with one another"


def check_overlap(
    task: Task, keys: list[bytes], seen: SeenImages | None, of_head: Digests, *, allowed: bool
) -> tuple[tuple[OverlapCheck, ...], Leakage | None]:
    """Compare a cohort with the images that training saw.

    Parameters
    ----------
    task : Task
        The cohort.
    keys : list of bytes
        Of its readable images.
    seen : SeenImages or None
        None where the run is not known.
    of_head : ndarray (m,) int64
        The digests of training images that the head file has, see `hoarfrost.heads.seen`. They are used where the run, or its
        cache, is not known.
    allowed : bool
        Continue in spite of an overlap.

    Raises
    ------
    TrainingError
        If they overlap, unless that is allowed.
    """
    found = None if seen is None else _leakage(task, keys, seen)
    checks = tuple(
        _checks_by_digests(task, keys, of_head)
        if seen is None or found is None
        else _checks(task, keys, seen, found, of_head)
    )
    overlaps = [check for check in checks if check.n]
    if overlaps and not allowed:
        ids = " If two hospitals use the same numbers for different patients, rename those of the cohort (B-17 for 17)."
        raise TrainingError(
            f"{task.table.source} overlaps with the images that the head learned from. "
            f"{' '.join(check.text for check in overlaps)} Such scores do not show how the head does on new patients. Remove "
            f"these images from the cohort, or continue with --allow-leakage. The report will then state it."
            f"{ids if overlaps[0].what == PATIENTS else ''}"
        )
    return checks, found


def _checks_by_digests(task: Task, keys: list[bytes], of_head: Digests) -> Iterator[OverlapCheck]:
    """Yield what a head file alone allows to check: identical images, if it has digests."""
    yield OverlapCheck(PATIENTS, None, f"Not checked: {NO_RUN}.")
    if len(of_head):
        yield _bytes_by_digests(task, keys, of_head)
    else:
        yield OverlapCheck(BYTES, None, f"Not checked: {NO_DIGESTS_HERE}.")
    yield OverlapCheck(NEAR, None, f"Not checked: {NO_RUN}.")


def _bytes_by_digests(task: Task, keys: list[bytes], of_head: Digests) -> OverlapCheck:
    """Return how many images of the cohort have a digest that the head file has."""
    is_shared = np.isin(digests_of(keys), of_head)
    n, which = int(is_shared.sum()), np.flatnonzero(is_shared)
    text = "No identical image is in the training images, by the digests in the head file."
    if n:
        paths = task.table.paths
        first = paths[int(np.flatnonzero(task.readable)[which[0]])]
        noun = "identical image is" if n == 1 else "identical images are"
        text = f"{n:,} {noun} in the training images, by the digests in the head file: {first}."
    return OverlapCheck(BYTES, n, text)


def _leakage(task: Task, keys: list[bytes], seen: SeenImages) -> Leakage:
    n_seen, n = len(seen.paths), len(keys)
    own = task.table.patients
    patients = [""] * n if own is None else [own[i] for i in np.flatnonzero(task.readable)]
    known = [""] * n_seen if seen.patients is None else list(seen.patients)
    contents: list[object] = list(range(n_seen)) if seen.keys is None else _files(seen.keys)
    paths = [task.table.paths[i] for i in np.flatnonzero(task.readable)]
    x = None
    if seen.x is not None:
        x = np.concatenate([seen.x, gathered(task.looks.first(task.looks.last_layer), np.arange(n))])
    return find_leakage(
        x,
        np.array(["train"] * n_seen + [EXTERNAL] * n),
        [*contents, *_files(keys)],
        [*seen.paths, *paths],
        [*known, *patients],
    )


def _files(keys: Iterable[bytes]) -> list[object]:
    """Return what the keys of two regions of one file have in common."""
    return [key[:FILE_BYTES] for key in keys]


def _checks(
    task: Task, keys: list[bytes], seen: SeenImages, found: Leakage, of_head: Digests
) -> Iterator[OverlapCheck]:
    whose = "of the cohort" if task.table.patients is None else "of the training images"
    if task.table.patients is None or seen.patients is None:
        yield OverlapCheck(PATIENTS, None, f"Not checked: the patients {whose} are unknown.")
    else:
        yield OverlapCheck(PATIENTS, found.n_patients, _text(found.n_patients, "patient", found.patients))
    missing = f"Not checked: the run's cache is needed. {seen.reason}"
    if seen.keys is None and len(of_head):
        yield _bytes_by_digests(task, keys, of_head)
    elif seen.keys is None:
        yield OverlapCheck(BYTES, None, missing)
    else:
        yield OverlapCheck(BYTES, found.n_contents, _text(found.n_contents, "identical image", found.contents))
    if seen.x is None:
        yield OverlapCheck(NEAR, None, missing if seen.keys is None else f"Not checked: {MANY}.")
    else:
        n, pairs = found.n_near_duplicates, found.near_duplicates
        yield OverlapCheck(NEAR, n, _text(n, "pair of near-identical images", pairs, "pairs of near-identical images"))


def _text(n: int, one: str, pairs: "tuple[SharedPair, ...] | tuple[SimilarPair, ...]", several: str = "") -> str:
    """Return what is shared, with the first example."""
    if not n:
        return f"No {one} is in the training images."
    first = pairs[0]
    which = f", cosine {first.cosine:.3f}" if isinstance(first, SimilarPair) else ""
    noun = one if n == 1 else several or f"{one}s"
    return f"{n:,} {noun} {'is' if n == 1 else 'are'} in the training images: {first.second} and {first.first}{which}."
