"""One row for each frame of a file, and patients and attributes from DICOM headers."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.placeholders import placeholders, warn_of
from hoarfrost.features.datasets.pseudonyms import Pseudonyms
from hoarfrost.features.datasets.table import ONLY_FRAME, Dataset, FileImages, Place, Places
from hoarfrost.features.decoding.formats import (
    FRAME_MARK,
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    is_dicom,
    may_be_bare_dicom,
)
from hoarfrost.features.decoding.tiff import page_offsets
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from hoarfrost.features.files import is_url, join, opened_file, suffix_of

if TYPE_CHECKING:
    from hoarfrost.features.decoding.dicom import DicomHeader

READS_AT_ONCE = 16  # over a network, where reading is mostly waiting
MAX_FRAMES = 1 << 20  # of a file: a header may state any number

logger = logging.getLogger(__name__)


def with_frames(dataset: Dataset, pseudonyms: Pseudonyms) -> Dataset:
    """Return the dataset with one row per frame, and with patients and attributes from DICOM headers.

    A row with a file's path becomes one row for each of its frames that no other row names.
    """
    images = dataset.images
    if not isinstance(images, FileImages):
        return dataset
    # Most files have a suffix of a single image. The others are opened, but for URLs with a query after such a suffix.
    single = IMAGE_SUFFIXES - TIFF_SUFFIXES
    others = dict.fromkeys(images.files.take(~images.files.have_suffix(single)))
    found = _read_headers(images.root, [file for file in others if suffix_of(file) not in single])
    headers = {file: header for file, (_, header) in found.items() if header is not None}
    n_frames = {file: n for file, (n, _) in found.items() if n > 1}
    if headers:
        dataset = _with_headers(dataset, images, headers, pseudonyms)
    if not n_frames and images.places is None:
        return dataset
    if n_frames and dataset.patients is None:
        dataset = replace(dataset, patients=images.files)  # the frames of one file show one patient
    return _select_rows(dataset, images, list(_rows(images, n_frames)))


def _read_headers(root: str, files: list[str]) -> "dict[str, tuple[int, DicomHeader | None]]":
    n_threads = READS_AT_ONCE if any(is_url(join(root, file)) for file in files) else 1
    with ThreadPoolExecutor(n_threads, "header") as pool:
        return dict(zip(files, pool.map(partial(_read_one_header, root), files), strict=True))


def _read_one_header(root: str, file: str) -> "tuple[int, DicomHeader | None]":
    """Count a file's frames, and read its header if it is DICOM. An unreadable file is one image, until it is decoded."""
    place = join(root, file)
    if not is_url(place) and not os.path.isfile(place):
        return 1, None  # opening a pipe would block, and a device never ends
    try:
        with opened_file(place) as content:
            if suffix_of(file) in TIFF_SUFFIXES:
                return max(1, min(len(page_offsets(content)), MAX_FRAMES)), None
            head = content.read(HEAD_BYTES)
            header = dicom_header(content, place) if is_dicom(head) or may_be_bare_dicom(head) else None
    except (OSError, ImageDecodeError):
        return 1, None
    return (1, None) if header is None else (min(header.n_frames, MAX_FRAMES), header)


def dicom_header(file: BinaryIO, place: str) -> "DicomHeader | None":
    """Read a DICOM file's header. Return None if it cannot be read. Raise DatasetError if pydicom is missing."""
    try:
        from hoarfrost.features.decoding.dicom import read_header
    except ImportError as error:
        raise DatasetError(
            f"{place.partition('?')[0] if is_url(place) else place}: this seems to be a DICOM file, and pydicom is not "
            "installed. Install it: pip install 'hoarfrost[dicom]'."
        ) from error
    file.seek(0)
    return read_header(file)


def _rows(images: FileImages, n_frames: dict[str, int]) -> Iterator[tuple[int, Place]]:
    """Yield for each image the row of the dataset that it comes from, and its place in the file."""
    numbers = images.places.numbers.tolist() if images.places is not None else [0] * len(images.files)
    named = {(file, number) for file, number in zip(images.files, numbers, strict=True) if number}
    for source, (file, number) in enumerate(zip(images.files, numbers, strict=True)):
        n = n_frames.get(file, 1)
        if number:
            # A file's only frame is the file itself.
            yield source, ONLY_FRAME if n == number == 1 else Place(number, n)
        elif n == 1:
            yield source, ONLY_FRAME
        else:
            yield from ((source, Place(i, n)) for i in range(1, n + 1) if (file, i) not in named)


def _select_rows(dataset: Dataset, images: FileImages, rows: list[tuple[int, Place]]) -> Dataset:
    """Return a dataset of some rows."""
    sources = np.array([source for source, _ in rows], np.int64)
    places = Places(*np.array([place for _, place in rows], np.int32).reshape(-1, 2).T)
    files = images.files.take(sources)
    was_frame = np.zeros(len(rows), bool) if images.places is None else images.places.numbers[sources] > 0
    # A row with a file's path gets the path of the file, or those of its frames.
    whole, unnamed = np.flatnonzero(~was_frame), np.flatnonzero((places.numbers > 0) & ~was_frame)
    named = zip(files.take(unnamed), places.numbers[unnamed].tolist(), strict=True)
    paths = dataset.paths.take(sources).replaced(whole, files.take(whole))
    paths = paths.replaced(unnamed, Texts.of(f"{file}{FRAME_MARK}{number}" for file, number in named))
    return replace(
        dataset,
        paths=paths,
        labels=dataset.labels.take(sources),
        splits=dataset.splits.take(sources) if dataset.splits is not None else None,
        patients=dataset.patients.take(sources) if dataset.patients is not None else None,
        images=FileImages(images.root, files, places, images.listed),
        attributes={name: texts.take(sources) for name, texts in dataset.attributes.items()},
    )


ATTRIBUTES = {"site": "site", "scanner": "scanner", "sex": "sex", "age": "age", "burned-in text": "burned_in"}
"""The fields of a header that are stored, by the attribute's name; never a name, an id, a date or an accession number."""


def _with_headers(
    dataset: Dataset, images: FileImages, headers: "dict[str, DicomHeader]", pseudonyms: Pseudonyms
) -> Dataset:
    """Add patients and attributes. Those of a CSV take precedence over the headers."""
    _warn(headers, images.location)
    files = images.files
    attributes = dict(dataset.attributes)
    for name, field in ATTRIBUTES.items():
        column = Texts.of(getattr(headers[file], field) if file in headers else "" for file in files)
        if name not in attributes and column.lengths.any():
            attributes[name] = column
    patients = dataset.patients
    if patients is None:
        # A file without a patient in its header is a patient of its own, as in a dataset without patients.
        ids = Counter(header.patient_id for header in headers.values() if header.patient_id)
        studies = {header.study or file for file, header in headers.items()}
        unused = placeholders(ids, len(studies)) if sum(ids.values()) == len(headers) else placeholders(ids, 1)
        if unused:
            n_files = sum(ids[patient] for patient in unused)
            warn_of(unused, n_files, len(headers), "the images of one study count as one patient")
        patient_of = {
            file: header.study if header.patient_id in unused else header.patient for file, header in headers.items()
        }
        known = {file: patient for file, patient in patient_of.items() if patient}
        patients = Texts.of(pseudonyms.of(known[file]) if file in known else file for file in files)
    return replace(dataset, patients=patients, attributes=attributes)


def _warn(headers: "dict[str, DicomHeader]", folder: str) -> None:
    n_files = f"{len(headers):,}"
    burned_in = [file for file, header in headers.items() if header.burned_in == "yes"]
    if burned_in:
        logger.warning(
            "%s of %s DICOM files have text burned into their pixels, according to their headers (first: %s). The text may "
            "name the patient, and a head may learn it", f"{len(burned_in):,}", n_files, burned_in[0],
        )  # fmt: skip
    n_identified = sum(header.is_identified_by(file, folder) for file, header in headers.items())
    if n_identified:
        logger.warning(
            "the paths of %s DICOM files contain their patient's id, name or birth date, or an accession number. Paths are "
            "stored in the cache, the run and the report. Rename the files or folders before you share any of these",
            f"{n_identified:,}",
        )  # fmt: skip
    n_without_id = sum(not header.patient_id for header in headers.values())
    if n_without_id:
        logger.warning(
            "%s of %s DICOM files have no patient id. Those of one study count as one patient; those without a study count "
            "as one patient each", f"{n_without_id:,}", n_files,
        )  # fmt: skip
