"""Where images come from: a folder, a CSV or a MedMNIST npz becomes one table of images, a frame of a file each."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from features.datasets.folders import read_folder
from features.datasets.frames import with_frames
from features.datasets.manifest import read_manifest
from features.datasets.npz import NpzImages, read_npz
from features.datasets.table import Dataset, FileStamp, ImageSource, Stamps, file_images
from features.errors import DatasetError
from features.labels import is_label_column
from features.pseudonyms import Pseudonyms
from features.texts import Texts

__all__ = [
    "MANIFEST_NAME",
    "Dataset",
    "FileStamp",
    "ImageSource",
    "Stamps",
    "check_classes",
    "open_images",
    "read_dataset",
    "read_table",
]

MANIFEST_NAME = "labels.csv"


def read_dataset(data: Path, *, name: str | None = None, pseudonyms: Pseudonyms | None = None) -> Dataset:
    """Read the table of images that a path stands for; no image is decoded.

    Parameters
    ----------
    data : Path
        A folder (`train/val/test` with class folders, class folders alone, or with a `labels.csv`),
        a CSV file (`path,label[,split][,patient][,attributes…]`) or an npz file in MedMNIST's layout.
    name : str, optional
        The data set's name in the cache; by default that of the folder or file.
    pseudonyms : Pseudonyms, optional
        What stands for the patients of DICOM files; by default another for each call.

    Raises
    ------
    DatasetError
        If there is nothing to read, or what there is contradicts itself or has no classes to learn.
    """
    dataset = read_table(data, name=name, pseudonyms=pseudonyms)
    check_classes(dataset)
    return dataset


def read_table(data: Path, *, name: str | None = None, pseudonyms: Pseudonyms | None = None) -> Dataset:
    """Do as `read_dataset` does, whether or not there are classes to learn."""
    if not os.path.exists(data):  # Path.exists raises where a folder above may not be entered, or a name is too long
        raise DatasetError(f"{data}: no such file or folder. Give a folder of images, a CSV or an npz file.")
    name = _checked_name(name if name is not None else _default_name(data))
    if data.is_dir():
        manifest = data / MANIFEST_NAME
        dataset = read_manifest(manifest, name, str(data)) if manifest.is_file() else read_folder(data, name)
    elif data.suffix.lower() == ".npz":
        dataset = read_npz(data, name)
    elif data.suffix.lower() in {".csv", ".tsv"}:
        dataset = read_manifest(data, name, str(data))
    else:
        raise DatasetError(
            f"{data}: neither a folder nor a CSV or npz file. Give the folder that holds the images, "
            "or a CSV with the columns path,label."
        )
    return with_frames(dataset, pseudonyms or Pseudonyms())


def open_images(location: str, paths: Sequence[str]) -> ImageSource:
    """Open the images of a data set whose table was read before; that is not read again.

    Parameters
    ----------
    location : str
        `ImageSource.location` of then: the folder that paths are relative to, or the npz file.
    paths : sequence of str
        All of the data set, in its order.

    Raises
    ------
    DatasetError
        If there is no such folder or file now.
    """
    if os.path.isdir(location):
        return file_images(location, Texts.of(paths))
    if os.path.isfile(location) and location.lower().endswith(".npz"):
        return NpzImages(location, Counter(path.rsplit("/", 2)[-2] for path in paths))
    raise DatasetError(f"{location or 'the place of the images'}: no such folder or npz file.")


def _default_name(data: Path) -> str:
    """Name a data set by its folder or file; `labels.csv` says nothing, its folder does."""
    resolved = data.resolve()
    if resolved.is_dir():
        return resolved.name or "dataset"
    return resolved.parent.name if resolved.name == MANIFEST_NAME and resolved.parent.name else resolved.stem


def _checked_name(name: str) -> str:
    # The name becomes an HDF5 group: "/" would nest it and "." means the group itself.
    if not name or "/" in name or name in {".", ".."} or not name.isprintable():
        raise DatasetError(
            f"{name!r} cannot name a data set (empty, '/', '.' or control characters). Pass --name NAME."
        )
    return name


def check_classes(dataset: Dataset) -> None:
    """Refuse a data set without images, or without two classes or a column of 0 and 1 to learn."""
    if not len(dataset):
        raise DatasetError(f"{dataset.source}: no images listed. Check that this is the right path.")
    if any(is_label_column(column.values()) for column in dataset.attributes.values()):
        return
    if not len(dataset.labels.rows_of_length(1)):
        raise DatasetError(
            f"{dataset.source}: no label is there in some images and absent in others, so that nothing could be learnt."
        )
    if len(dataset.classes) < 2:
        raise DatasetError(
            f"{dataset.source}: all {len(dataset)} images have one class ({dataset.classes[0]!r}); a classifier needs "
            "at least two. Give the folder above the class folders, or a CSV with both labels."
        )
