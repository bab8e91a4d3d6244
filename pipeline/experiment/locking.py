"""`train --lock-test`: the analysis plan is fixed before training, and trainings that use a locked test split are counted."""

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path

from hoarfrost.experiment.earlier import runs_beside
from hoarfrost.experiment.task import Task
from hoarfrost.features.cache import EmbeddingCache, JoinedCache
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import Run, read_splits
from hoarfrost.runs.lock import (
    AnalysisPlan,
    Look,
    count_look,
    enter,
    is_locked,
    ledger_of,
    plan_in,
    read_looks,
    runs_in_ledger,
)

TRAINING = "train --run "  # how the look of a training begins

logger = logging.getLogger(__name__)


def lock_test(
    task: Task, cache: EmbeddingCache, heads: Sequence[HeadSpec], settings: Mapping[str, object], directory: Path
) -> AnalysisPlan:
    """Fix the analysis plan, before any head is trained.

    Parameters
    ----------
    task : Task
    cache : EmbeddingCache
    heads : sequence of HeadSpec
    settings : mapping
        How heads are trained, selected and scored.
    directory : Path
        The run folder, for the message.

    Raises
    ------
    TrainingError
        If there is no test split.
    """
    test = task.rows_of("test")
    if not len(test):
        raise TrainingError(
            f"--lock-test: the dataset {task.table.name!r} has no test split, so there is nothing to lock. Omit the option."
        )
    rows = task.table.rows[task.readable]
    keys = sorted(bytes(key) for key in cache.keys(rows[test]))
    plan = AnalysisPlan(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        n_test=len(test),
        test=hashlib.sha256(b"".join(keys)).hexdigest(),
        splits=_digest(task.splits.tolist()),
        labels=_digest(task.labels()),
        embeddings=cache.digest(cache.view_rows(rows, task.views).ravel()),
        heads=tuple(spec.name for spec in heads),
        settings={name: str(value) for name, value in settings.items()},
    ).sealed()
    logger.info("%s: the test split, %d images, is locked; analysis plan SHA-256 %s", directory, len(test), plan.digest)
    return plan


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()


def with_earlier_looks(run: Run, cache: EmbeddingCache, named: Path | None = None) -> Run:
    """Return a run with the looks that earlier runs had at its locked test images.

    Those of locked runs of the same cache, such as the one it replaces, and of the run that `named` is, whose splits it has;
    and one of each training without a lock on the same cache that they do not have, whose folder is here or beside it.
    """
    if run.config.plan is None:
        return run
    same = [one for one in _locked_runs(cache) if (plan_in(one) or {}).get("test") == run.config.plan.test]
    same += [named] if named is not None and is_locked(named) and named.resolve() not in same else []
    looks = dict.fromkeys(look for one in same for look in read_looks(one))
    counted = {Path(look.command.removeprefix(TRAINING)).name for look in looks if look.command.startswith(TRAINING)}
    looks |= dict.fromkeys(_open_looks(run, cache, counted))
    return replace(run, looks=tuple(sorted(looks, key=astuple)))


def _open_looks(run: Run, cache: EmbeddingCache, counted: Collection[str]) -> Iterator[Look]:
    """Yield a look for each training without a lock on the cache that showed scores of the run's test images.

    `counted` names the folders of those that were counted when they were trained.
    """
    test = {run.predictions.paths[i] for i in run.rows_of("test")}
    for one in runs_beside(run.directory):
        config = one.config
        caches = {Path(of.cache).resolve() for of in config.embeddings.of_each}
        is_same = config.dataset.name == run.config.dataset.name and not caches.isdisjoint(
            path.resolve() for path in _paths(cache)
        )
        if config.plan is not None or not is_same or one.directory.name in counted:
            continue
        try:
            n_shared = sum(split == "test" and path in test for path, split in read_splits(one.directory).items())
        except RunError:  # it cannot be read
            continue
        if n_shared:
            logger.warning(
                "%s: trained without --lock-test, it shows scores of %d of the images that are locked now. This counts as a "
                "look.", one.directory, n_shared,
            )  # fmt: skip
            yield Look(config.created, f"{TRAINING}{one.directory}", str(one.directory.resolve()))


def count_training(task: Task, cache: EmbeddingCache, directory: Path, named: Path | None = None) -> None:
    """Count a training without a lock as a look at each locked test split whose images it uses.

    Locked runs are those of the cache, and the run that `named` is, whose splits are kept.

    Raises
    ------
    RunError
        If such a run is damaged, or the look cannot be recorded.
    """
    paths: set[str] | None = None
    runs = _locked_runs(cache)
    runs += [named] if named is not None and is_locked(named) and named.resolve() not in runs else []
    for run in runs:
        paths = set(compress(task.table.paths, task.readable)) if paths is None else paths
        n_shared = sum(split == "test" and path in paths for path, split in read_splits(run).items())
        if n_shared:
            logger.warning(
                "%s: its test split is locked, and this training uses %d of the test images. This counts as a look.",
                run, n_shared,
            )  # fmt: skip
            count_look(run, f"{TRAINING}{directory}")


def enter_run(run: Run, cache: EmbeddingCache) -> None:
    """Add a run with a locked test split to the ledger of its cache, or of each of its caches."""
    if run.config.plan is not None:
        for path in _paths(cache):
            enter(path, run.directory)


def _locked_runs(cache: EmbeddingCache) -> list[Path]:
    """Return the locked runs of a cache; a warning names those that are not there any more."""
    named = {run: path for path in _paths(cache) for run in runs_in_ledger(path)}
    for run, path in named.items():
        if not run.is_dir():
            logger.warning(
                "%s: this run with a locked test split is no longer there. This training is not counted in it, and its "
                "earlier looks are not known. If it was moved, write its new folder into %s; if it was removed, remove the "
                "line.", run, ledger_of(path),
            )  # fmt: skip
    return [run for run in named if is_locked(run)]


def _paths(cache: EmbeddingCache) -> list[Path]:
    """Return the file of a cache, or those of several that are one."""
    return [part.path for part in cache.parts] if isinstance(cache, JoinedCache) else [cache.path]
