"""Digests of a run's files, so that a file that was changed after `train` wrote it is not believed."""

from hashlib import file_digest
from pathlib import Path

from hoarfrost.features.errors import RunError
from hoarfrost.runs.lock import LOOKS

DIGESTS = "SHA256SUMS"  # as `sha256sum --check` reads it


def write_digests(directory: Path) -> None:
    """Write the SHA-256 of each file of a run but that of looks, which grows."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in {DIGESTS, LOOKS})
    lines = [f"{_digest(path)}  {path.relative_to(directory).as_posix()}\n" for path in files]
    (directory / DIGESTS).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def check_digest(directory: Path, path: Path) -> None:
    """Compare a file of a run with its digest. Runs of earlier versions have none.

    Raises
    ------
    RunError
        If the file was changed, or is not one of the run's files.
    """
    try:
        text = (directory / DIGESTS).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
    if path.is_file() and recorded.get(path.relative_to(directory).as_posix()) != _digest(path):
        raise RunError(
            f"{path} was changed after the run was written: its SHA-256 is not the one in {DIGESTS}. Restore the file, or "
            "remove the folder and train again."
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
