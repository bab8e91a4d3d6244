"""Code that torch compiled, kept between runs: where it is, and for which networks."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

TORCHS_FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # torch's name for where compiled code is

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the user's folder for what is kept between runs. Raise RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hoarfrost"


def code_folder() -> Path:
    """Return where torch keeps compiled code: a folder of the user's, as torch's own is emptied with the temporary files.

    The environment variable TORCHINDUCTOR_CACHE_DIR, which is torch's, takes precedence.
    """
    return Path(os.environ.get(TORCHS_FOLDER) or cache_folder() / "compiled")


@contextmanager
def code_kept() -> Iterator[None]:
    """Let torch keep the code that it compiles in our folder, if that can be written; restore the setting afterwards."""
    before = os.environ.get(TORCHS_FOLDER)
    try:
        folder = code_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[TORCHS_FOLDER] = str(folder)
    except (OSError, RuntimeError) as error:
        logger.debug("compiled code is not kept: %s", error)
    try:
        yield
    finally:
        os.environ.pop(TORCHS_FOLDER, None)  # torch sets it too
        if before is not None:
            os.environ[TORCHS_FOLDER] = before


def _kept_note(key: str) -> Path:
    """Return the file that says that the code for these speeds is kept: it goes if the folder is emptied."""
    return code_folder() / f"hoarfrost-{sha256(key.encode()).hexdigest()[:16]}"


def is_code_kept(key: str) -> bool:
    """Return whether the code that speeds are for was compiled before, and is still there."""
    try:
        return _kept_note(key).exists()
    except (OSError, RuntimeError):
        return False


def note_kept_code(key: str) -> None:
    """Note that compiled code is kept."""
    try:
        _kept_note(key).write_text(key + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as error:
        logger.debug("compiled code was not noted: %s", error)
