"""A folder, a CSV or a MedMNIST npz read into one table of images, with one row per frame."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np

from hoarfrost.features.columns.labels import is_label_column
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.folders import list_images, read_folder
from hoarfrost.features.datasets.frames import with_frames
from hoarfrost.features.datasets.hints import hints
from hoarfrost.features.datasets.manifest import DEFAULTS, read_manifest
from hoarfrost.features.datasets.npz import NpzImages, read_npz
from hoarfrost.features.datasets.options import TableOptions, part_of
from hoarfrost.features.datasets.placeholders import without_placeholders
from hoarfrost.features.datasets.pseudonyms import Pseudonyms
from hoarfrost.features.datasets.spellings import check_spellings, with_labels_named
from hoarfrost.features.datasets.table import Dataset, FileImages, ImageSource, Stamps, file_images, to_nfc
from hoarfrost.features.decoding.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.files import FileStamp, checked_url, is_url, join, list_url, suffix_of

__all__ = [
    "MANIFEST_NAME", "Dataset", "FileStamp", "ImageSource", "Stamps", "TableOptions", "check_classes", "hints",
    "open_images", "read_dataset", "read_listed", "read_table", "read_unlabelled",
]  # fmt: skip

MANIFEST_NAME = "labels.csv"
UNNAMED = "images"
CSV_SUFFIXES = frozenset({".csv", ".tsv"})
FILE_SUFFIXES = CSV_SUFFIXES | IMAGE_SUFFIXES | DICOM_SUFFIXES | {".npz"}


def read_dataset(
    data: Path | str,
    *,
    name: str | None = None,
    pseudonyms: Pseudonyms | None = None,
    options: TableOptions = DEFAULTS,
) -> Dataset:
    """Read the table of images at a path; no image is decoded.

    Parameters
    ----------
    data : Path or str
        A folder (`train/val/test` with class folders, class folders alone, or with a `labels.csv`),
        a CSV file (`path,label[,split][,patient][,attributes…]`) or an npz file in MedMNIST's layout.
        Folder and CSV may be at a URL (s3://, gs://, http(s)://), and a CSV's paths may be URLs.
    name : str, optional
        The dataset's name in the cache; by default that of the folder or file.
    pseudonyms : Pseudonyms, optional
        Pseudonyms of the patients in DICOM files; by default with another salt in each call.
    options : TableOptions, optional
        Other columns, files to leave out, where patients and labels come from.

    Raises
    ------
    DatasetError
        If nothing can be read, or the table contradicts itself, has no classes to learn, or one class in two spellings.
    """
    dataset = read_table(data, name=name, pseudonyms=pseudonyms, options=options)
    check_classes(dataset)
    return dataset


def read_table(
    data: Path | str,
    *,
    name: str | None = None,
    pseudonyms: Pseudonyms | None = None,
    options: TableOptions = DEFAULTS,
) -> Dataset:
    """Read a dataset as `read_dataset` does, but without a check of its classes."""
    return with_frames(read_listed(data, name=name, options=options), pseudonyms or Pseudonyms())


def read_listed(data: Path | str, *, name: str | None = None, options: TableOptions = DEFAULTS) -> Dataset:
    """Read a dataset's table as it is listed: no file is opened for its frames or its DICOM header."""
    place = _checked_place(data)
    name = _default_name(place) if name is None else name
    if not _is_name(name):
        problem = "cannot be a dataset's name (empty, '/', '.' or control characters)"
        raise DatasetError(f"{name!r} {problem}. Pass --name NAME.")
    dataset = _selected(_read(place, name, options, labelled=True), options)
    return with_labels_named(_with_rules(without_placeholders(dataset), options), options)


def _selected(dataset: Dataset, options: TableOptions) -> Dataset:
    """Return the dataset without the files that are not included, or excluded."""
    if not options.include and not options.exclude:
        return dataset
    kept = np.array([row for row, path in enumerate(dataset.paths) if options.selects(path)], np.int64)
    if not len(kept):
        raise DatasetError(f"{dataset.source}: --include and --exclude leave none of {len(dataset):,} images.")
    return dataset.take(kept)


def _with_rules(dataset: Dataset, options: TableOptions) -> Dataset:
    """Return the dataset with patients and labels from its paths, as the options say."""
    if options.label_from is not None:
        rule = options.label_from
        dataset = replace(
            dataset, labels=dataset.paths.mapped(lambda path: to_nfc(part_of(path, rule, "--label-from")))
        )
    if options.patient_from is not None:
        rule = options.patient_from
        dataset = replace(dataset, patients=dataset.paths.mapped(lambda path: part_of(path, rule, "--patient-from")))
    return dataset


def read_unlabelled(data: Path | str, pseudonyms: Pseudonyms | None = None) -> Dataset:
    """Read the table of images to predict, without labels and splits.

    Parameters
    ----------
    data : Path or str
        As in `read_table`; also a folder of images in any order, a CSV with paths only, an npz without labels, or one
        image file.
    pseudonyms : Pseudonyms, optional
        As in `read_dataset`.

    Raises
    ------
    DatasetError
        If nothing can be read.
    """
    place = _checked_place(data)
    name = _default_name(place)
    dataset = _read(place, name if _is_name(name) else UNNAMED, DEFAULTS, labelled=False)
    if not len(dataset):
        raise DatasetError(f"{data}: no images listed. Check that this is the right path.")
    return with_frames(dataset, pseudonyms or Pseudonyms())


def _checked_place(data: Path | str) -> str:
    if is_url(data):
        return checked_url(str(data)).rstrip("/")
    if not os.path.exists(data):  # Path.exists raises if a folder above cannot be entered, or a name is too long
        raise DatasetError(f"{data}: no such file or folder. Pass a folder of images, a CSV or an npz file.")
    return str(data)


def _read(place: str, name: str, options: TableOptions, *, labelled: bool) -> Dataset:
    suffix = suffix_of(place)
    if _is_folder(place):
        if _contains_manifest(place):
            return read_manifest(join(place, MANIFEST_NAME), name, place, options, labelled=labelled)
        return read_folder(place, name) if labelled else list_images(place, name)
    if suffix == ".npz" and is_url(place):
        raise DatasetError(f"{place}: an npz file cannot be read from a URL. Copy it to a disk, and pass its path.")
    if suffix == ".npz":
        return read_npz(Path(place), name, labelled=labelled)
    if suffix in CSV_SUFFIXES:
        return read_manifest(place, name, place, options, labelled=labelled)
    if labelled:
        raise DatasetError(
            f"{place}: not a folder, a CSV or an npz file. Pass the folder that contains the images, or a CSV with the "
            "columns path,label."
        )
    folder, file = os.path.split(place)
    images = FileImages(folder or ".", Texts.of([place if is_url(place) else file]))
    return Dataset(name, place, images.files, Texts.of([""]), None, None, images)


def _is_folder(place: str) -> bool:
    """Return whether it is a folder; at a URL by its name, because not every store has folders."""
    return suffix_of(place) not in FILE_SUFFIXES if is_url(place) else os.path.isdir(place)


def _contains_manifest(place: str) -> bool:
    if not is_url(place):
        return os.path.isfile(os.path.join(place, MANIFEST_NAME))
    return any(entry.name == MANIFEST_NAME and entry.is_file() for entry in list_url(place))


def open_images(location: str, paths: Sequence[str]) -> ImageSource:
    """Open the images of a dataset whose table was read before, without reading the table again.

    Parameters
    ----------
    location : str
        The dataset's `ImageSource.location`: the folder or URL that paths are relative to, or the npz file.
    paths : sequence of str
        All paths of the dataset, in its order.

    Raises
    ------
    DatasetError
        If the folder or file is missing.
    """
    if is_url(location) or os.path.isdir(location):
        return file_images(location, Texts.of(paths))
    if os.path.isfile(location) and location.lower().endswith(".npz"):
        return NpzImages(location, Counter(path.rsplit("/", 2)[-2] for path in paths), range(len(paths)))
    raise DatasetError(f"{location or 'the location of the images'}: no such folder or npz file.")


def _default_name(place: str) -> str:
    """Return the name of a dataset's folder or file; for `labels.csv`, that of its folder."""
    url = urlsplit(place)
    path = PurePosixPath(unquote(url.path) or url.netloc) if is_url(place) else Path(place).resolve()
    if _is_folder(place):
        return path.name or "dataset"
    return path.parent.name if path.name == MANIFEST_NAME and path.parent.name else path.stem


def _is_name(name: str) -> bool:
    # The name becomes an HDF5 group: "/" would nest it, and "." is the group itself.
    return bool(name) and "/" not in name and name not in {".", ".."} and name.isprintable()


def check_classes(dataset: Dataset) -> None:
    """Raise DatasetError for a dataset without images, or with neither two classes nor a column of 0 and 1 to learn."""
    if not len(dataset):
        raise DatasetError(f"{dataset.source}: no images listed. Check that this is the right path.")
    if any(is_label_column(column.values()) for column in dataset.attributes.values()):
        return
    if not len(dataset.labels.rows_of_length(1)):
        raise DatasetError(
            f"{dataset.source}: no label has both 0 and 1, so there is nothing to learn. Check the labels."
        )
    check_spellings(dataset.labels, dataset.source)
    if len(dataset.classes) < 2:
        raise DatasetError(
            f"{dataset.source}: all {len(dataset)} images have one class ({dataset.classes[0]!r}); a classifier needs "
            "at least two. Pass the folder above the class folders, or a CSV with both labels."
        )
