"""Patients that are none: ANONYMOUS, or one id for all. They are said, and do not count."""

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.table import Dataset

_PLACEHOLDERS = frozenset({
    "anonymous", "anonymized", "anonymised", "anonymize", "anon", "anonym", "anonymouspatient", "deidentified", "removed",
    "unknown", "none", "na", "nan", "null", "nil", "noid", "patient", "patientid", "id", "test", "xxx", "xxxx", "dummy",
})  # fmt: skip

_ZEROS = 3  # and more are no number of a patient
_LEAST_IMAGES = 10  # with one id, for it not to be a patient

logger = logging.getLogger(__name__)


def is_placeholder(patient: str) -> bool:
    """Return whether an id says that there is none: a word such as ANONYMOUS, or zeros."""
    plain = "".join(c for c in patient.casefold() if c.isalnum())
    return plain in _PLACEHOLDERS or (len(plain) >= _ZEROS and not plain.strip("0"))


def placeholders(patients: Counter[str], n_different: int) -> set[str]:
    """Return the ids that do not count; one id for all is one of them where there are several studies or files."""
    found = {patient for patient in patients if is_placeholder(patient)}
    return set(patients) if len(patients) == 1 and n_different > 1 else found


def warn_of(found: Collection[str], n_images: int, n_all: int, instead: str) -> None:
    """Say which ids do not count, and what counts in their place."""
    whose = f"{n_images:,} of {n_all:,} images have a patient id that is a placeholder"
    if n_images == n_all and len(found) == 1:
        whose = f"all {n_all:,} images have the same patient id"
    # An id that could be a patient's is not repeated.
    shown = f" ({min(found)})" if all(map(is_placeholder, found)) else ""
    text = "%s%s. It does not count: %s. If patients are in the paths, pass --patient-from REGEX|parent"
    logger.warning(text, whose, shown, instead)


def without_placeholders(dataset: Dataset) -> Dataset:
    """Return a dataset whose placeholders are no patients: each image of one is a patient of its own."""
    if dataset.patients is None:
        return dataset
    counts = Counter({patient: n for patient, n in dataset.patients.counts().items() if patient})
    found = placeholders(counts, 1 if len(dataset) < _LEAST_IMAGES else 2)
    if not found:
        return dataset
    n_images = sum(counts[patient] for patient in found)
    warn_of(found, n_images, len(dataset), "each of these images counts as a patient of its own")
    if n_images == len(dataset):
        return replace(dataset, patients=None)
    rows = np.flatnonzero([patient in found for patient in dataset.patients])
    return replace(dataset, patients=dataset.patients.replaced(rows, Texts.of(dataset.paths.take(rows))))
