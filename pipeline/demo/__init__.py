"""The demo dataset: synthetic breast-ultrasound phantoms, drawn from a seed. No image shows a person."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoarfrost.demo.phantoms import SCANNERS, Phantom, Scanner, draw_anatomy, draw_phantom
from hoarfrost.features.datasets import MANIFEST_NAME
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.files.whole import whole_file

logger = logging.getLogger(__name__)

# hoarfrost.features.decoding.images loads torch, so it is imported where it is used: listing commands must stay fast.

MIN_IMAGES = 30
CLASS_SHARES: Mapping[str, float] = {"benign": 0.5, "malignant": 0.3, "normal": 0.2}
"""Each class's share of the images."""

# Shares of patients with 1, 2, 3 and 4 images. Few images each give many patients, which a test split of a fifth needs.
_SHARES_BY_IMAGES = (0.45, 0.35, 0.15, 0.05)

_HEADER = "path,label,patient,scanner"
_IMAGE = rf"(?:{'|'.join(CLASS_SHARES)})/p\d{{3,}}_\d\.png"
_OWN_ROW = re.compile(rf"({'|'.join(CLASS_SHARES)})/(p\d{{3,}})_\d\.png,\1,\2,[{''.join(s.name for s in SCANNERS)}]")
_LEFTOVER = rf"(?:(?:{'|'.join(CLASS_SHARES)})/)?\.[\w.]+\.[0-9a-f]{{32}}\.tmp"
_OWN_FILE = re.compile(rf"{_IMAGE}|(?:{_IMAGE}|{re.escape(MANIFEST_NAME)})\.\d+\.tmp|{_LEFTOVER}")


@dataclass(frozen=True)
class Patient:
    """A patient of the dataset. `seed` alone decides the anatomy and all images, independent of other patients."""

    name: str
    label: str
    scanner: Scanner
    n_images: int
    seed: np.random.SeedSequence

    @property
    def paths(self) -> tuple[str, ...]:
        """The images' paths, relative to the dataset's folder."""
        return tuple(f"{self.label}/{self.name}_{number}.png" for number in range(1, self.n_images + 1))


@dataclass(frozen=True)
class DemoSummary:
    """What `write_demo` wrote: the numbers of images and patients, images by class, and the seconds it took."""

    directory: Path
    n_images: int
    n_patients: int
    n_images_by_class: dict[str, int]
    seconds: float


def write_demo(directory: Path, *, n_images: int = 480, seed: int = 0) -> DemoSummary:
    """Write the demo dataset: `CLASS/*.png` and `labels.csv` with the columns path,label,patient,scanner.

    Parameters
    ----------
    directory : Path
        New, empty, or with an earlier demo set, which is updated. Files that would not change are not written, so that
        caches of their embeddings stay valid.
    n_images : int
        At least 30.
    seed : int
        At least 0. The same seed gives the same bytes (on one machine, with the same library versions).

    Raises
    ------
    HoarfrostError
        If `n_images` is too small, or the folder contains something else or cannot be written.
    """
    start = time.perf_counter()
    if n_images < MIN_IMAGES:
        raise HoarfrostError(
            f"{directory}: {n_images} images are too few for a demo set: each class needs enough patients "
            f"for train, validation and test. Use {MIN_IMAGES} or more."
        )
    patients = plan_patients(n_images, seed)
    try:
        _refuse_foreign(directory)
        _write_files(directory, patients)
    except OSError as error:
        raise HoarfrostError(
            f"{directory}: the demo set cannot be written: {error.strerror or error}. "
            "Free some space, fix the folder or choose another one. The same command continues from there."
        ) from error
    seconds = time.perf_counter() - start
    return DemoSummary(directory, n_images, len(patients), _quotas(n_images), seconds)


def plan_patients(n_images: int, seed: int) -> tuple[Patient, ...]:
    """Draw the patients of the dataset.

    Parameters
    ----------
    n_images : int
        Images of all patients together; each class gets its share.
    seed : int

    Returns
    -------
    tuple of Patient
        Each has one class, one scanner and one to four images. The scanners are spread evenly over each class.
    """
    root = np.random.SeedSequence(seed)
    rng = np.random.default_rng(root)
    drawn = [
        (label, scanner, n_views)
        for label, quota in _quotas(n_images).items()
        for scanner, n_views in _draw_visits(quota, rng)
    ]
    # In random order: a patient's number must not reveal the class.
    shuffled = [drawn[place] for place in rng.permutation(len(drawn)).tolist()]
    return tuple(
        Patient(f"p{number:03d}", label, scanner, n_views, child)
        for number, ((label, scanner, n_views), child) in enumerate(
            zip(shuffled, root.spawn(len(drawn)), strict=True), start=1
        )
    )


def draw_patient(patient: Patient) -> Iterator[Phantom]:
    """Draw a patient's images, in the order of `patient.paths`; the same ones at every call."""
    rng = np.random.default_rng(patient.seed)
    anatomy = draw_anatomy(patient.label, rng)
    for _ in patient.paths:
        yield draw_phantom(anatomy, patient.scanner, rng)


def _quotas(n_images: int) -> dict[str, int]:
    """Return the images of each class; rounding the running total makes them add up."""
    edges = np.rint(np.cumsum([0, *CLASS_SHARES.values()]) * n_images).astype(int)
    return dict(zip(CLASS_SHARES, np.diff(edges).tolist(), strict=True))


def _draw_visits(quota: int, rng: np.random.Generator) -> list[tuple[Scanner, int]]:
    """Return the scanner and number of images of each patient of a class, `quota` images in all."""
    n_views = rng.choice([1, 2, 3, 4], size=quota, p=_SHARES_BY_IMAGES)
    n_views = np.minimum(n_views, quota // 3)  # at least three patients, or no split by patient is possible
    n_views = n_views[: np.searchsorted(np.cumsum(n_views), quota) + 1]
    n_views[-1] -= n_views.sum() - quota
    # Alternating among patients with equally many images, so that the scanner does not reveal the class.
    first = int(rng.integers(len(SCANNERS)))
    return [(SCANNERS[(first + turn) % len(SCANNERS)], n) for turn, n in enumerate(np.sort(n_views).tolist())]


# -- the files --------------------------------------------------------------------------------------------------------


def _refuse_foreign(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise HoarfrostError(f"{directory} is a file. The demo set needs a folder: choose another name.")
    if directory.is_dir() and not _is_ours(directory):
        raise HoarfrostError(
            f"{directory} is not empty and does not contain a demo set ({MANIFEST_NAME} is missing or different). "
            "Nothing was changed. Choose a new or an empty folder."
        )


def _is_ours(directory: Path) -> bool:
    """Return whether a folder is empty, a demo set, or an incomplete one of an interrupted command."""
    manifest = directory / MANIFEST_NAME
    if manifest.is_file():
        header, *rows = manifest.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        return header == _HEADER and all(_OWN_ROW.fullmatch(row) for row in rows)
    entries = (path for path in directory.rglob("*") if not path.is_dir())
    return all(_OWN_FILE.fullmatch(path.relative_to(directory).as_posix()) for path in entries)


def _write_files(directory: Path, patients: tuple[Patient, ...]) -> None:
    rows = [f"{path},{p.label},{p.name},{p.scanner.name}" for p in patients for path in p.paths]
    table = "\n".join([_HEADER, *rows, ""]).encode()
    manifest = directory / MANIFEST_NAME
    for label in CLASS_SHARES:
        (directory / label).mkdir(parents=True, exist_ok=True)
    # The table is there only with the images that it describes: if it changes, it is removed first and written last.
    if manifest.exists() and manifest.read_bytes() != table:
        n_before = manifest.read_bytes().count(b"\n") - 1
        logger.warning(
            "%s: another demo set, of %d images, is replaced by this one of %d", directory, n_before, len(rows)
        )
        manifest.unlink()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda patient: _write_patient(directory, patient), patients):
            pass  # an error in a thread is raised here
    _remove_leftovers(directory, keep={path for patient in patients for path in patient.paths})
    # Only this file is flushed to the disk: if a power cut left it empty, the folder would not be recognised.
    _replace_if_changed(manifest, table, durable=True)


def _write_patient(directory: Path, patient: Patient) -> None:
    from hoarfrost.features.decoding.images import encode_png

    for path, phantom in zip(patient.paths, draw_patient(patient), strict=True):
        _replace_if_changed(directory / path, encode_png(phantom.image))


def _replace_if_changed(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file, complete or not at all; keep it and its time stamp if nothing changes."""
    if path.is_file() and path.read_bytes() == content:
        return
    with whole_file(path, durable=durable) as file:
        file.write(content)


def _remove_leftovers(directory: Path, *, keep: set[str]) -> None:
    """Remove the images of an earlier demo set, which would be counted otherwise."""
    for label in CLASS_SHARES:
        for path in (directory / label).iterdir():
            name = path.relative_to(directory).as_posix()
            if name not in keep and _OWN_FILE.fullmatch(name):
                path.unlink()
