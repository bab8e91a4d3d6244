"""A locked test split: the analysis plan that was fixed before training, and the count of looks at the test scores."""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hoarfrost.features.errors import RunError
from hoarfrost.features.files.locks import held

LOOKS = "looks.csv"  # in the run folder; it grows after the run was written, so it has no digest
LEDGER_SUFFIX = ".locked"  # beside a cache: the folders of its runs with a locked test split, one in each line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnalysisPlan:
    """What was fixed before training.

    Attributes
    ----------
    created : str
    n_test : int
        Images of the locked test split.
    test : str
        The SHA-256 of the test images' bytes, in order of their digests: the same for the same images.
    splits, labels, embeddings : str
        SHA-256 of all images' splits, of their labels, and of the cache's rows that are used.
    heads : tuple of str
        Their specifications.
    settings : dict
        How heads are trained, selected and scored, and the rule of the threshold.
    digest : str
        The SHA-256 of all of these.
    """

    created: str
    n_test: int
    test: str
    splits: str
    labels: str
    embeddings: str
    heads: tuple[str, ...]
    settings: dict[str, str]
    digest: str = ""

    def sealed(self) -> "AnalysisPlan":
        """Return the plan with its digest."""
        content = json.dumps(asdict(replace(self, digest="")), sort_keys=True, ensure_ascii=True)
        return replace(self, digest=hashlib.sha256(content.encode()).hexdigest())

    @property
    def is_intact(self) -> bool:
        """Whether the plan is the one that was hashed."""
        return self.sealed().digest == self.digest


@dataclass(frozen=True)
class Look:
    """A look at the scores of a locked test split: when, by which command, and on which run."""

    time: str
    command: str
    run: str


def count_look(directory: Path, command: str) -> int | None:
    """Count a look at a run's test scores, and return its number; None if the test split is not locked.

    Parameters
    ----------
    directory : Path
        The run folder.
    command : str
        What looks.

    Raises
    ------
    RunError
        If the look cannot be recorded.

    Notes
    -----
    A line is appended and flushed to the disk while the file is held, so that commands at the same time are all counted.
    """
    if not is_locked(directory):
        return None
    path, look = directory / LOOKS, Look(_now(), command, str(directory.resolve()))
    try:
        while True:
            with held(path) as is_there:
                if not is_there and path.exists():  # the run was replaced meanwhile
                    continue
                _append(path, _lines([look]))
                number = len(read_looks(directory))
                break
    except OSError as error:
        raise RunError(
            f"{directory}: its test split is locked, and this look at it cannot be recorded in {path.name}: {error}. Make "
            "the folder writable."
        ) from error
    level = logging.INFO if number == 1 else logging.WARNING
    logger.log(level, "%s: look number %d at the locked test split", directory, number)
    return number


def is_locked(directory: Path) -> bool:
    """Return whether a folder is a run with a locked test split; errors in it are those of reading the run."""
    return plan_in(directory) is not None


def plan_in(directory: Path) -> dict[str, Any] | None:
    """Return the analysis plan in a run's configuration as it is written; None without one."""
    try:
        content = json.loads((directory / "config.json").read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError):
        return None
    plan = content.get("plan") if isinstance(content, dict) else None
    return plan if isinstance(plan, dict) and not content.get("evaluates") else None


def read_looks(directory: Path) -> tuple[Look, ...]:
    """Read the looks at a run's test scores, the first one first; none if the file is missing.

    Raises
    ------
    RunError
        If the file cannot be read.
    """
    try:
        text = (directory / LOOKS).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise RunError(
            f"{directory}: looks at its locked test split cannot be recorded in {LOOKS}, which cannot be read: {error}."
        ) from error
    n_fields = len(fields(Look))
    rows = [row for row in csv.reader(io.StringIO(text)) if len(row) == n_fields]
    return tuple(Look(*row) for row in rows[1:])


def write_looks(path: Path, looks: Sequence[Look]) -> None:
    """Write the file of looks of a new run, with those at the same test images by earlier runs."""
    header = ",".join(field.name for field in fields(Look)) + "\n"
    path.write_text(header + _lines(looks), encoding="utf-8", errors="surrogateescape", newline="")


def _lines(looks: Sequence[Look]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(astuple(look) for look in looks)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    """Append in one call, which the operating system does not divide, and flush to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.encode("utf-8", "surrogateescape"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# -- the runs of a cache ------------------------------------------------------------------------------------------------


def ledger_of(cache: Path) -> Path:
    """Return the path of the file that names a cache's runs with a locked test split."""
    return cache.with_name(cache.name + LEDGER_SUFFIX)


def enter(cache: Path, directory: Path) -> None:
    """Add a run to the ledger of its cache; a warning states that later trainings cannot count their looks."""
    path, line = ledger_of(cache), f"{directory.resolve()}\n"
    try:
        if line.strip() not in map(str, locked_runs(cache)):
            _append(path, line)
    except OSError as error:
        logger.warning("%s cannot be written: later trainings on this cache are not counted as looks (%s)", path, error)


def locked_runs(cache: Path) -> list[Path]:
    """Return the runs with a locked test split that a cache's ledger names, and that are still there."""
    return [run for run in runs_in_ledger(cache) if is_locked(run)]


def runs_in_ledger(cache: Path) -> list[Path]:
    """Return the runs that a cache's ledger names, whether or not they are still there."""
    try:
        text = ledger_of(cache).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [Path(line) for line in dict.fromkeys(text.splitlines()) if line.strip()]
