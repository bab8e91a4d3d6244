"""Regions: each image is cut to its box, or to the box around its mask, and embedded in place of the whole image.

A box is not part of the image's bytes. So a region is an image of its own: its key is that of its pixels, and a cache of
regions has another fingerprint than one of whole images.
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
import numpy.typing as npt

from hoarfrost.features.datasets import Dataset, ImageSource, Stamps
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from hoarfrost.features.files import FileStamp, is_url, read, stamp_of

if TYPE_CHECKING:
    from hoarfrost.features.datasets.table import Content
    from hoarfrost.features.decoding.images import Decoding, Pixels

BOX, MASK = "box", "mask"
MARGIN = 0.1  # of the longer side of a box, on each side of it
OWN_SCALE = 1 << 20  # an encoder's input for which every JPEG is decoded at its own size: boxes are in its pixels
NO_BOX, NO_MASK, EMPTY_MASK, OUTSIDE = "no box", "no mask", "the mask is empty", "the box is outside of the image"
OTHER_SIZE = "the mask has another size than the image"
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"[\[(]?{_NUMBER}[,; ]{_NUMBER}[,; ]{_NUMBER}[,; ]{_NUMBER}[\])]?")

Box = tuple[float, float, float, float]  # x0, y0, x1 and y1, in pixels of the image, x1 and y1 exclusive


def region_step(region: str, margin: float | None) -> str:
    """Return what a fingerprint's preprocessing states of regions."""
    return f"cut to its {region}, with a margin of {MARGIN if margin is None else margin:g} of the longer side"


@dataclass(frozen=True)
class RegionImages:
    """Images cut to their regions.

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
    """

    whole: ImageSource
    boxes: tuple[Box | None, ...]
    masks: tuple[tuple[str, ...], ...]
    kind: str
    margin: float
    max_pixels: int
    window: Window | None

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
        """Yield for each image a function that reads it and returns the pixels of its region, (H, W) or (H, W, 3) uint8."""
        for index, read_whole in self.whole.contents(indices):
            yield index, partial(self._cut, index, read_whole)

    def subset(self, indices: Sequence[int]) -> "RegionImages":
        """Return a source of only these images."""
        return replace(
            self,
            whole=self.whole.subset(indices),
            boxes=tuple(self.boxes[index] for index in indices),
            masks=tuple(self.masks[index] for index in indices),
        )

    def _cut(self, index: int, read_whole: "Callable[[], Content]") -> "Pixels":
        from hoarfrost.features.decoding.images import Decoding

        decoding = Decoding(self.max_pixels, self.window, size=OWN_SCALE)
        pixels = _pixels(read_whole(), decoding)
        box = self.boxes[index] if self.kind == BOX else self._around_masks(index, pixels.shape[:2], decoding)
        if box is None:
            raise ImageDecodeError(NO_BOX)
        top, bottom, left, right = _with_margin(box, self.margin, pixels.shape)
        if top >= bottom or left >= right:
            raise ImageDecodeError(OUTSIDE)
        return np.ascontiguousarray(pixels[top:bottom, left:right])

    def _around_masks(self, index: int, shape: tuple[int, ...], decoding: "Decoding") -> Box:
        """Return the box around all pixels of the image's masks that are not black."""
        if not self.masks[index]:
            raise ImageDecodeError(NO_MASK)
        inside = np.zeros(shape, bool)
        for place in self.masks[index]:
            mask = _pixels(read(place), decoding)
            if mask.shape[:2] != shape:
                raise ImageDecodeError(OTHER_SIZE)
            inside |= mask.reshape(*shape, -1).any(axis=2)
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            raise ImageDecodeError(EMPTY_MASK)
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _pixels(content: "Content", decoding: "Decoding") -> "Pixels":
    from hoarfrost.features.decoding.images import decode_pixels

    return content if isinstance(content, np.ndarray) else decode_pixels(content, decoding)


def _with_margin(box: Box, margin: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a box with its margin, within the image."""
    x0, y0, x1, y1 = box
    if x1 <= 0 or y1 <= 0 or x0 >= shape[1] or y0 >= shape[0]:
        return 0, 0, 0, 0
    more = margin * max(x1 - x0, y1 - y0)
    edges: npt.NDArray[np.int64] = np.round([y0 - more, y1 + more, x0 - more, x1 + more]).astype(np.int64)
    top, bottom, left, right = np.clip(edges, 0, [shape[0], shape[0], shape[1], shape[1]]).tolist()
    return top, max(bottom, top + 1), left, max(right, left + 1)


def with_regions(
    dataset: Dataset, region: str, margin: float | None, *, max_pixels: int, window: Window | None = None
) -> Dataset:
    """Return the dataset with each image cut to its region; one without a region is unreadable, with the reason.

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

    Raises
    ------
    DatasetError
        If the column is missing, or a box is not four numbers.
    """
    n = len(dataset)
    boxes: tuple[Box | None, ...] = _boxes(dataset) if region == BOX else (None,) * n
    masks = _masks(dataset) if region == MASK else ((),) * n
    images = RegionImages(
        dataset.images, boxes, masks, region, MARGIN if margin is None else margin, max_pixels, window
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
