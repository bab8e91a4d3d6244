"""Pseudonyms of patients: salted hashes, which show that two ids are equal, but not the ids."""

import hmac
import os
import secrets
from pathlib import Path

from hoarfrost.features.errors import CacheError

SALT_BYTES = 32
_DIGITS = 16  # of the hash: 64 bits, so that even a million patients get different ones


class Pseudonyms:
    """Pseudonyms for the patients of DICOM files.

    Parameters
    ----------
    salt_file : Path, optional
        The file with the salt, readable by its owner only; created at the first pseudonym if missing. With it, one could
        try all possible ids, so it is part of neither the cache nor a run. Without a file, each object has its own salt.
    keep_ids : bool
        Use the ids unchanged.
    """

    def __init__(self, salt_file: Path | None = None, *, keep_ids: bool = False) -> None:
        self._salt_file = salt_file
        self._keep_ids = keep_ids
        self._salt: bytes | None = None

    def of(self, patient_id: str) -> str:
        """Return the pseudonym of an id: the same for the same id and salt."""
        if self._keep_ids:
            return patient_id
        if self._salt is None:
            self._salt = secrets.token_bytes(SALT_BYTES) if self._salt_file is None else _salt_in(self._salt_file)
        return hmac.digest(self._salt, patient_id.encode("utf-8", "surrogateescape"), "sha256").hex()[:_DIGITS]


def salt_path(cache: Path) -> Path:
    """Return the path of a cache's salt: next to the cache itself, not to a link to it."""
    real = Path(os.path.realpath(cache))
    return real.with_name(real.name + ".salt")


def _salt_in(path: Path) -> bytes:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            text = path.read_text(encoding="ascii", errors="replace").strip()
        else:
            text = secrets.token_hex(SALT_BYTES)
            with os.fdopen(number, "w") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(number)
        salt = bytes.fromhex(text)
    except (OSError, ValueError) as error:
        raise CacheError(
            f"{path}: the salt for hashing patients' ids cannot be read or created: {error}. Fix this, or remove the file: "
            "patients then get other hashes."
        ) from error
    if len(salt) != SALT_BYTES:
        raise CacheError(f"{path}: not a salt of {SALT_BYTES} bytes. Remove the file: patients then get other hashes.")
    return salt
