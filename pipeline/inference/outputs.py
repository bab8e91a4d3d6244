"""Where commands write a file: checked before anything is computed, then written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hoarfrost.features.errors import HoarfrostError, RunError
from hoarfrost.features.files.whole import check_writable, whole_file


@contextmanager
def checked_output(output: Path) -> Iterator[None]:
    """Make the folder of an output, after the checks in the `with` block; name the output in what the system refuses."""
    try:
        yield
        output.parent.mkdir(parents=True, exist_ok=True)
        check_writable(output.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise HoarfrostError(f"--output {output} cannot be written: {error}. Name another file.") from error


@contextmanager
def written_output(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write; an earlier one is replaced when this one is complete.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error}. Free space on the disk, or name another file with --output."
        ) from error
