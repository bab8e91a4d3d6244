"""Files that are written completely or not at all."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def check_writable(folder: Path) -> None:
    """Write a temporary file into a folder. Raise OSError if that fails: better before the work than after it."""
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write it atomically: a reader sees the earlier file or the new one, never half of it."""
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # processes in two containers may share a number
    try:
        with staging.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
