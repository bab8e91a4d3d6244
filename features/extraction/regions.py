"""Regions: an image's box, or the box around its masks, embedded in place of the whole image or as a view beside it.

A box is not part of the image's bytes. So an image with another box is another image: where regions are views of their
own, its key is that of its file and its box; in place of the whole image, that of the region's pixels. A cache with regions
has another fingerprint than one of whole images.
"""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.features.datasets import Dataset, ImageSource, Stamps
from hoarfrost.features.decoding.region import OTHER_SIZE, Box, Region
from hoarfrost.features.decoding.views import OWN_SCALE
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from hoarfrost.features.files import FileStamp, is_url, read, stamp_of

if TYPE_CHECKING:
    from hoarfrost.features.datasets.table import Content
    from hoarfrost.features.decoding.images import Pixels

BOX, MASK = "box", "mask"
MARGIN = 0.1  # of the longer side of a box, on each side of it
NO_BOX, NO_MASK, EMPTY_MASK = "no box", "no mask", "the mask is empty"
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"[\[(]?{_NUMBER}[,; ]{_NUMBER}[,; ]{_NUMBER}[,; ]{_NUMBER}[\])]?")


def region_step(region: str, margin: float | None, *, are_views: bool) -> str:
    """Return what a fingerprint's preprocessing states of regions, in all views or in those that are named so."""
    share = MARGIN if margin is None else margin
    return f"cut to its {region}, with a margin of {share:g} of the longer side{', in views named region' * are_views}"


@dataclass(frozen=True)
class RegionImages:
    """Images with their regions.

    Attributes
    ----------
    whole : ImageSource
    boxes : tuple of Box or None
        By image; None where it is found by masks, or missing.
    masks : tuple of tuples of str
        The files of each image's masks.
    kind : str
        "box" or "mask".
    margin : float
    max_pixels : int
    window : Window or None
    are_views : bool
        The images are whole, and views show their regions; otherwise the images are cut to them.
    """

    whole: ImageSource
    boxes: tuple[Box | None, ...]
    masks: tuple[tuple[str, ...], ...]
    kind: str
    margin: float
    max_pixels: int
    window: Window | None
    are_views: bool = False

    @property
    def location(self) -> str:
        """The folder or file that paths are relative to."""
        return self.whole.location

    @property
    def is_remote(self) -> bool:
        """Whether any image comes over a network."""
        return self.whole.is_remote

    def stamp(self, index: int) -> FileStamp:
        """Return the size of the image's file, and a number in place of its time that changes with its region, too."""
        stamp = self.whole.stamp(index)
        return FileStamp(stamp.size, self._mixed(index, stamp.mtime_ns))

    def stamps(self, *, of_urls: bool) -> Stamps:
        """Return `stamp` of every image, and which files are missing."""
        found = self.whole.stamps(of_urls=of_urls)
        known = np.flatnonzero(found.mtimes_ns >= 0)
        found.mtimes_ns[known] = [self._mixed(index, int(found.mtimes_ns[index])) for index in known.tolist()]
        return found

    def _mixed(self, index: int, mtime_ns: int) -> int:
        stamps = [stamp_of(mask) if os.path.exists(mask) else None for mask in self.masks[index]]
        text = repr((mtime_ns, self.boxes[index], self.masks[index], stamps))
        return int.from_bytes(sha256(text.encode("utf-8", "surrogateescape")).digest()[:7])  # below 2**63

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Yield for each image a function that reads it; or returns the pixels of its region, (H, W) or (H, W, 3) uint8."""
        for index, read_whole in self.whole.contents(indices):
            yield index, read_whole if self.are_views else partial(self._cut, index, read_whole)

    def region(self, index: int) -> Region | None:
        """Return where the image's region is, if views show it; raise ImageDecodeError if it has none."""
        return self._region(index) if self.are_views else None

    def subset(self, indices: Sequence[int]) -> "RegionImages":
        """Return a source of only these images."""
        return replace(
            self,
            whole=self.whole.subset(indices),
            boxes=tuple(self.boxes[index] for index in indices),
            masks=tuple(self.masks[index] for index in indices),
        )

    def _cut(self, index: int, read_whole: "Callable[[], Content]") -> "Pixels":
        pixels = self._pixels(read_whole())
        return self._region(index).cut(pixels)

    def _region(self, index: int) -> Region:
        box = self.boxes[index]
        if self.kind == MASK:
            return self._around_masks(index)
        if box is None:
            raise ImageDecodeError(NO_BOX)
        return Region(box, self.margin)

    def _around_masks(self, index: int) -> Region:
        """Return the box around all pixels of the image's masks that are not black."""
        masks = [self._pixels(read(place)) for place in self.masks[index]]
        if not masks:
            raise ImageDecodeError(NO_MASK)
        height, width = masks[0].shape[:2]
        if any(mask.shape[:2] != (height, width) for mask in masks):
            raise ImageDecodeError(OTHER_SIZE)
        inside = np.any([mask.reshape(height, width, -1).any(axis=2) for mask in masks], axis=0)
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            raise ImageDecodeError(EMPTY_MASK)
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        return Region(box, self.margin, (height, width))

    def _pixels(self, content: "Content") -> "Pixels":
        """Return an image at its own size: boxes are in its pixels."""
        from hoarfrost.features.decoding.images import Decoding, decode_pixels

        if isinstance(content, np.ndarray):
            return content
        return decode_pixels(content, Decoding(self.max_pixels, self.window, size=OWN_SCALE))


def with_regions(
    dataset: Dataset, region: str, margin: float | None, *, max_pixels: int, window: Window | None = None,
    are_views: bool = False,
) -> Dataset:  # fmt: skip
    """Return the dataset with its images' regions; an image without one is unreadable, with the reason.

    Parameters
    ----------
    dataset : Dataset
    region : "box" or "mask"
        A box is in the column `box`, as x0,y0,x1,y1 in pixels. A mask is the file in the column `mask`; without that
        column, all files beside the image with its name and `_mask`.
    margin : float, optional
        Added at each side, as a share of the longer side.
    max_pixels, window
        As in `Decoding`.
    are_views : bool
        Leave the images whole for views that show their regions; by default each image is cut to its region.

    Raises
    ------
    DatasetError
        If the column is missing, or a box is not four numbers.
    """
    n = len(dataset)
    boxes: tuple[Box | None, ...] = _boxes(dataset) if region == BOX else (None,) * n
    masks = _masks(dataset) if region == MASK else ((),) * n
    images = RegionImages(
        dataset.images, boxes, masks, region, MARGIN if margin is None else margin, max_pixels, window, are_views
    )
    return replace(dataset, images=images)


def _boxes(dataset: Dataset) -> tuple[Box | None, ...]:
    if BOX not in dataset.attributes:
        raise DatasetError(
            f"--region box: {dataset.source} has no column box. Add one with x0,y0,x1,y1 in pixels, in double quotes."
        )
    found: list[Box | None] = []
    for path, cell in zip(dataset.paths, dataset.attributes[BOX], strict=True):
        match = _BOX.fullmatch(cell.strip())
        box = None if match is None else (float(match[1]), float(match[2]), float(match[3]), float(match[4]))
        if cell.strip() and (box is None or box[0] >= box[2] or box[1] >= box[3]):
            raise DatasetError(
                f"{dataset.source}: {path}: the box {cell!r} is not x0,y0,x1,y1 in pixels with x0 < x1 and y0 < y1. Correct "
                "it, or leave it empty to list the image as unreadable."
            )
        found.append(box)
    return tuple(found)


def _masks(dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    root = dataset.images.location
    if is_url(root) or not os.path.isdir(root):
        raise DatasetError(f"--region mask: {root}: masks are read from a folder on a disk. Copy the dataset there.")
    if MASK in dataset.attributes:
        cells = dataset.attributes[MASK]
        return tuple((_within(root, cell, dataset.source),) if cell.strip() else () for cell in cells)
    stems = (os.path.join(glob.escape(root), glob.escape(os.path.splitext(path)[0])) for path in dataset.paths)
    found = tuple(tuple(sorted(glob.glob(f"{stem}_mask*"))) for stem in stems)
    if not any(found):
        raise DatasetError(
            f"--region mask: {dataset.source} has no column mask, and no file NAME_mask.* is beside an image. Add the column."
        )
    return found


def _within(root: str, cell: str, source: str) -> str:
    place = os.path.realpath(os.path.join(root, cell.strip()))
    if not place.startswith(os.path.join(root, "")):
        raise DatasetError(f"{source}: the mask {cell} is outside of {root}, so it is not read. Move it there.")
    return place
