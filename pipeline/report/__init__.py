"""The report of a run: one HTML file that needs nothing beside it and requests nothing."""

import os
from pathlib import Path

from features.errors import RunError
from pipeline.report.page import render
from pipeline.runs import read_run

__all__ = ["write_report"]


def write_report(directory: Path) -> Path:
    """Write the report of a run into its folder.

    Parameters
    ----------
    directory : Path
        The run folder that `hoarfrost train` wrote. It is read again, so a report can be made anew at any time.

    Returns
    -------
    Path
        `directory / "report.html"`: complete, or untouched where this function raises.

    Raises
    ------
    RunError
        If `directory` is not a readable run, or the report cannot be written there.

    Notes
    -----
    The report depends on the run alone: the same run gives the same bytes.
    """
    page = render(read_run(directory))
    path = directory / "report.html"
    try:
        _write_whole(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(
            f"{path}: the report cannot be written: {error}. Free the disk or correct the folder's permissions, "
            f"then run `hoarfrost report --run {directory}` again."
        ) from error
    return path


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the earlier one or the new one, never half of it."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staging.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
