"""`train --lock-test`: the analysis plan is fixed before training, and trainings that use a locked test split are counted."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path

from hoarfrost.experiment.task import Task
from hoarfrost.features.cache import EmbeddingCache, JoinedCache
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import Run, read_splits
from hoarfrost.runs.lock import AnalysisPlan, count_look, enter, locked_runs, plan_in, read_looks

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


def with_earlier_looks(run: Run, cache: EmbeddingCache) -> Run:
    """Return a run with the looks that runs of the same cache, such as the one it replaces, had at its locked test images."""
    if run.config.plan is None:
        return run
    same = [one for one in _locked_runs(cache) if (plan_in(one) or {}).get("test") == run.config.plan.test]
    looks = dict.fromkeys(look for one in same for look in read_looks(one))
    return replace(run, looks=tuple(sorted(looks, key=astuple)))


def count_training(task: Task, cache: EmbeddingCache, directory: Path) -> None:
    """Count a training without a lock as a look at each locked test split of the cache whose images it uses.

    Raises
    ------
    RunError
        If such a run is damaged, or the look cannot be recorded.
    """
    paths: set[str] | None = None
    for run in _locked_runs(cache):
        paths = set(compress(task.table.paths, task.readable)) if paths is None else paths
        n_shared = sum(split == "test" and path in paths for path, split in read_splits(run).items())
        if n_shared:
            logger.warning(
                "%s: its test split is locked, and this training uses %d of the test images. This counts as a look.",
                run, n_shared,
            )  # fmt: skip
            count_look(run, f"train --run {directory}")


def enter_run(run: Run, cache: EmbeddingCache) -> None:
    """Add a run with a locked test split to the ledger of its cache, or of each of its caches."""
    if run.config.plan is not None:
        for path in _paths(cache):
            enter(path, run.directory)


def _locked_runs(cache: EmbeddingCache) -> list[Path]:
    return list(dict.fromkeys(run for path in _paths(cache) for run in locked_runs(path)))


def _paths(cache: EmbeddingCache) -> list[Path]:
    """Return the file of a cache, or those of several that are one."""
    return [part.path for part in cache.parts] if isinstance(cache, JoinedCache) else [cache.path]
