"""Digests of a run's files, so that a file that was changed after `train` wrote it is not believed."""

from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path

from hoarfrost.features.errors import RunError
from hoarfrost.features.files.whole import whole_file
from hoarfrost.runs.lock import LOOKS

DIGESTS = "SHA256SUMS"  # as `sha256sum --check` reads it


def write_digests(directory: Path) -> None:
    """Write the SHA-256 of each file of a run but that of looks, which grows."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in {DIGESTS, LOOKS})
    _write(directory, {path.relative_to(directory).as_posix(): digest_of(path) for path in files})


def replace_digests(directory: Path, names: Iterable[str], *, without: str) -> None:
    """Write the digests of some files again, which a command has replaced, and no digest of the file `without`."""
    recorded = {name: digest for name, digest in (recorded_digests(directory) or {}).items() if name != without}
    _write(directory, recorded | {name: digest_of(directory / name) for name in names})


def _write(directory: Path, digests: Mapping[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    with whole_file(directory / DIGESTS) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def check_digest(directory: Path, path: Path) -> None:
    """Compare a file of a run with its digest. Runs of earlier versions have none.

    Raises
    ------
    RunError
        If the file was changed, or is not one of the run's files.
    """
    recorded = recorded_digests(directory)
    if recorded is None:
        return
    if path.is_file() and recorded.get(path.relative_to(directory).as_posix()) != digest_of(path):
        raise RunError(
            f"{path} was changed after the run was written: its SHA-256 is not the one in {DIGESTS}. Restore the file, or "
            "remove the folder and train again."
        )


def changed_files(directory: Path) -> tuple[str, ...]:
    """Return the names of a run's files that are missing or were changed; none for runs of earlier versions."""
    recorded = (recorded_digests(directory) or {}).items()
    return tuple(
        name for name, digest in recorded if not (directory / name).is_file() or digest_of(directory / name) != digest
    )


def recorded_digests(directory: Path) -> dict[str, str] | None:
    """Return the digest of each file by its name; None for runs of earlier versions."""
    try:
        text = (directory / DIGESTS).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
