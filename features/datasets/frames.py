"""Files that hold several images become a row for each, and DICOM files tell their patients and attributes."""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.pseudonyms import Pseudonyms
from hoarfrost.features.datasets.table import THE_ONLY_ONE, Dataset, FileImages, Place, Places
from hoarfrost.features.decoding.formats import (
    FRAME_MARK,
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    is_dicom,
    may_be_bare_dicom,
)
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from hoarfrost.features.files import is_url, join, opened_file, suffix_of

if TYPE_CHECKING:
    from hoarfrost.features.decoding.dicom import DicomHeader

READS_AT_ONCE = 16  # over a network, where most of a read is waiting
MAX_FRAMES = 1 << 20  # of a file: a header may promise any number

logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    """An image: the row of the dataset that it comes from, and its place in the file."""

    source: int
    place: Place


def with_frames(dataset: Dataset, pseudonyms: Pseudonyms) -> Dataset:
    """Return the dataset with a row for each frame, and with patients and attributes from DICOM headers.

    A row that names a file counts for all of its frames, but for those that other rows name.
    """
    images = dataset.images
    if not isinstance(images, FileImages):
        return dataset
    # Most names say what they are; only the others are looked at one by one.
    odd = images.files.take(~images.files.have_suffix(IMAGE_SUFFIXES - TIFF_SUFFIXES))
    looked = _read_headers(images.root, [file for file in dict.fromkeys(odd) if _is_to_be_opened(file)])
    headers = {file: header for file, (_, header) in looked.items() if header is not None}
    n_frames = {file: n for file, (n, _) in looked.items() if n > 1}
    if headers:
        dataset = _with_headers(dataset, images, headers, pseudonyms)
    if not n_frames and images.places is None:
        return dataset
    if n_frames and dataset.patients is None:
        dataset = replace(dataset, patients=images.files)  # frames of one file are of one patient, whoever that is
    return _taken(dataset, images, list(_rows(images, n_frames)))


def _is_to_be_opened(file: str) -> bool:
    suffix = suffix_of(file)
    return suffix in TIFF_SUFFIXES or suffix not in IMAGE_SUFFIXES


def _read_headers(root: str, files: list[str]) -> "dict[str, tuple[int, DicomHeader | None]]":
    n_threads = READS_AT_ONCE if any(is_url(join(root, file)) for file in files) else 1
    with ThreadPoolExecutor(n_threads, "look") as pool:
        return dict(zip(files, pool.map(partial(_read_one_header, root), files), strict=True))


def _read_one_header(root: str, file: str) -> "tuple[int, DicomHeader | None]":
    """Count a file's frames, and read its header if it is DICOM; what cannot be read is one image, until it is decoded."""
    place = join(root, file)
    try:
        content: str | BinaryIO = opened_file(place) if is_url(place) else place
    except (OSError, ImageDecodeError):
        return 1, None
    if isinstance(content, str) and not os.path.isfile(content):
        return 1, None  # opening a pipe would wait for ever, and a device never ends
    if suffix_of(file) in TIFF_SUFFIXES:
        from hoarfrost.features.decoding.images import n_pages  # here: most datasets need no Pillow to be listed

        return min(n_pages(content), MAX_FRAMES), None
    header = dicom_header(content) if _begins_as_dicom(content) else None
    return (1, None) if header is None else (min(header.n_frames, MAX_FRAMES), header)


def _begins_as_dicom(file: str | BinaryIO) -> bool:
    if not isinstance(file, str):
        head = file.read(HEAD_BYTES)
        file.seek(0)
        return is_dicom(head) or may_be_bare_dicom(head)
    try:
        with open(file, "rb", buffering=0) as content:
            head = content.read(HEAD_BYTES)
    except OSError:
        return False
    return is_dicom(head) or may_be_bare_dicom(head)


def dicom_header(file: str | BinaryIO) -> "DicomHeader | None":
    """Read a DICOM file's header; None if it has none that can be read.

    Raises
    ------
    DatasetError
        If pydicom is missing.
    """
    try:
        from hoarfrost.features.decoding.dicom import read_header
    except ImportError as error:
        raise DatasetError(
            f"{file if isinstance(file, str) else 'A URL of the dataset'} seems to be a DICOM file, and pydicom is missing. "
            "Install it: pip install 'hoarfrost[dicom]'."
        ) from error
    return read_header(file)


def _rows(images: FileImages, n_frames: dict[str, int]) -> Iterator[_Row]:
    numbers = images.places.numbers.tolist() if images.places is not None else [0] * len(images.files)
    named = {(file, number) for file, number in zip(images.files, numbers, strict=True) if number}
    for source, (file, number) in enumerate(zip(images.files, numbers, strict=True)):
        n = n_frames.get(file, 1)
        if number:
            # The only frame there is, is the file.
            yield _Row(source, THE_ONLY_ONE if n == number == 1 else Place(number, n))
        elif n == 1:
            yield _Row(source, THE_ONLY_ONE)
        else:
            yield from (_Row(source, Place(i, n)) for i in range(1, n + 1) if (file, i) not in named)


def _taken(dataset: Dataset, images: FileImages, rows: list[_Row]) -> Dataset:
    """Return a dataset of some rows."""
    sources = np.array([row.source for row in rows], np.int64)
    places = Places(
        np.array([row.place.number for row in rows], np.int32), np.array([row.place.n_frames for row in rows], np.int32)
    )
    files = images.files.take(sources)
    was_frame = np.zeros(len(rows), bool) if images.places is None else images.places.numbers[sources] > 0
    # The paths of a file that was named as a whole are the file's, its frames' marked.
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


ATTRIBUTES: "dict[str, Callable[[DicomHeader], str]]" = {
    "site": lambda header: header.site,
    "scanner": lambda header: header.scanner,
    "sex": lambda header: header.sex,
    "age": lambda header: header.age,
    "burned-in text": lambda header: header.burned_in,
}
"""What of a header is kept, by the attribute's name; never a name, an id, a date or an accession number."""


def _with_headers(
    dataset: Dataset, images: FileImages, headers: "dict[str, DicomHeader]", pseudonyms: Pseudonyms
) -> Dataset:
    """Add patients and attributes; what a CSV says of them counts before the headers."""
    _warn(headers, images.location)
    files = images.files
    attributes = dict(dataset.attributes)
    for name, value in ATTRIBUTES.items():
        column = Texts.of(value(headers[file]) if file in headers else "" for file in files)
        if name not in attributes and column.lengths.any():
            attributes[name] = column
    patients = dataset.patients
    if patients is None:
        # A file whose header tells none is a patient of its own, as in a dataset that tells no patients.
        told = {file: header.patient for file, header in headers.items() if header.patient}
        patients = Texts.of(pseudonyms.of(told[file]) if file in told else file for file in files)
    return replace(dataset, patients=patients, attributes=attributes)


def _warn(headers: "dict[str, DicomHeader]", folder: str) -> None:
    burned_in = [file for file, header in headers.items() if header.burned_in == "yes"]
    if burned_in:
        logger.warning(
            "%s of %s DICOM files say that text is burned into their pixels (the first: %s): it may name the patient, and "
            "a head may learn it", f"{len(burned_in):,}", f"{len(headers):,}", burned_in[0],
        )  # fmt: skip
    n_telling = sum(header.is_identified_by(file, folder) for file, header in headers.items())
    if n_telling:
        logger.warning(
            "the paths of %s DICOM files hold their patient's id, name or birth date, or an accession number, and paths are "
            "kept in the cache, the run and the report: rename the files or folders before you share any of these",
            f"{n_telling:,}",
        )  # fmt: skip
    n_unnamed = sum(not header.patient_id for header in headers.values())
    if n_unnamed:
        logger.warning(
            "%s of %s DICOM files have no patient id; those of one study count as one patient, and where that is not "
            "said either, each file does", f"{n_unnamed:,}",
            f"{len(headers):,}",
        )  # fmt: skip
