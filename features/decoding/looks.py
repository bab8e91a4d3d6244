"""From an image to the encoder's inputs: one for each view, or for each tile of a view."""

import math
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from hoarfrost.features.decoding.formats import unpack
from hoarfrost.features.decoding.images import Decoding, opened
from hoarfrost.features.decoding.region import Region
from hoarfrost.features.decoding.views import View
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.facts import FileHeader, ImageFacts, facts_of

if TYPE_CHECKING:
    from hoarfrost.features.datasets.table import Content
    from hoarfrost.features.decoding.images import Pixels

MOST_DEGREES, MOST_SCALE = 10.0, 0.1  # of a random turn, and of a random change of size
JPEG_START = b"\xff\xd8"


class Seen(NamedTuple):
    """An image as the encoder sees it: its looks (C, S, S) uint8, view by view, its own height and width, and its facts."""

    looks: list[torch.Tensor]
    shape: tuple[int, int]
    facts: ImageFacts | None = None


class Decoded(NamedTuple):
    """An image's pixels (H, W) or (H, W, 3), the views that are made of them, and its file's header; None for an array."""

    pixels: "Pixels"
    views: Sequence[View]
    header: FileHeader | None


Box = tuple[float, float, float, float]  # top, left, bottom and right, in pixels of the image; may lie beyond it


def load_image(content: "Content", decoding: Decoding | None = None) -> torch.Tensor:
    """Return an image as the encoder's usual input, (C, S, S) uint8, where S is `decoding.size`; see `load_looks`."""
    decoding = decoding or Decoding()
    return load_looks(content, b"", (View(decoding.size),), decoding)[0]


def load_looks(content: "Content", key: bytes, views: Sequence[View], decoding: Decoding) -> list[torch.Tensor]:
    """Return the looks at an image in some views, see `seen_in`."""
    return seen_in(content, key, views, decoding).looks


def seen_in(
    content: "Content", key: bytes, views: Sequence[View], decoding: Decoding, region: Region | None = None
) -> Seen:
    """Return an image as the encoder sees it in some views.

    Parameters
    ----------
    content : bytes, EncodedFrame, or ndarray (H, W) or (H, W, 3) uint8
    key : bytes
        The image's key, which random views are drawn from.
    views : sequence of View
    decoding : Decoding
        Its `size` is replaced by each view's.
    region : Region, optional
        Where views of the image's region look.

    Returns
    -------
    Seen
        `View.n_looks` looks of each view, in the order of the views; S is the view's size; C is 1 for grey images, else 3
        (RGB).

    Raises
    ------
    ImageDecodeError
        If the bytes are not an image, or cannot be read completely; or if the region is not within it.
    """
    return seen_by(_decoded(content, views, decoding), key, views, region)


def seen_by(decoded: Iterable[Decoded], key: bytes, views: Sequence[View], region: Region | None = None) -> Seen:
    """Return an image as seen in views, from its pixels and the views that are made of each."""
    found: dict[View, list[torch.Tensor]] = {}
    shape, facts = (0, 0), None
    for pixels, some, header in decoded:
        shape = max(shape, (pixels.shape[0], pixels.shape[1]))
        facts = facts or facts_of(pixels, header)
        found.update(zip(some, looks_at(pixels, key, some, region), strict=True))
    return Seen([look for view in views for look in found[view]], shape, facts)


def _decoded(content: "Content", views: Sequence[View], decoding: Decoding) -> Iterator[Decoded]:
    """Yield an image's pixels, and the views that are made of them.

    A large JPEG is decoded at the scale that a view itself allows, so that a view does not depend on which others are made
    with it. Views of the same scale share the pixels; so do all views of other files.
    """
    if isinstance(content, np.ndarray):
        is_shown_as_it_is = any(content.shape[:2] == (view.size, view.size) for view in views)
        yield Decoded(content.copy() if is_shown_as_it_is else content, views, None)
        return
    groups = by_decoding(unpack(content)[0], views)
    while groups:
        first, *groups = groups
        with opened(content, decoding.at(first[0].decoded_size)) as image:
            shape = (image.width, image.height)
            same = [some for some in groups if _shape(content, decoding, some[0]) == shape]
            groups = [some for some in groups if some not in same]
            with decoding.room(image.width * image.height):
                yield Decoded(image.pixels(), [*first, *chain.from_iterable(same)], image.header)


def by_decoding(encoded: bytes, views: Sequence[View]) -> list[Sequence[View]]:
    """Return the views in groups, each of one decoding of a file: of a JPEG those of one `decoded_size`, else all."""
    if not encoded.startswith(JPEG_START):
        return [views]
    sizes = dict.fromkeys(view.decoded_size for view in views)
    return [[view for view in views if view.decoded_size == size] for size in sizes]


def _shape(content: "Content", decoding: Decoding, view: View) -> tuple[int, int]:
    """Return the width and height at which a JPEG is decoded for a view; this reads the header alone."""
    assert not isinstance(content, np.ndarray)
    with opened(content, decoding.at(view.decoded_size)) as image:
        return image.width, image.height


def looks_at(
    pixels: "Pixels", key: bytes, views: Sequence[View], region: Region | None = None
) -> list[list[torch.Tensor]]:
    """Return for each view its looks (C, S, S) uint8, from pixels (H, W) or (H, W, 3) uint8."""
    parts = {shown: _planes(_shown(pixels, region if shown else None)) for shown in {view.region for view in views}}
    made: dict[tuple[bool, int, Box], torch.Tensor] = {}
    found = []
    for view in views:
        image, looks = parts[view.region], []
        for box in boxes(view, *image.shape[1:]):
            place = (view.region, view.size, box)
            if place not in made:
                made[place] = _enlarged(image, box, view.size)
            looks.append(_moved(made[place], view, key))
        found.append(looks)
    return found


def _shown(pixels: "Pixels", region: Region | None) -> "Pixels":
    return pixels if region is None else region.cut(pixels)


def _planes(pixels: "Pixels") -> torch.Tensor:
    """Return the pixels as (C, H, W), channels last in memory; without a copy if possible."""
    if not pixels.flags.writeable or any(stride < 0 for stride in pixels.strides):
        pixels = pixels.copy()
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def boxes(view: View, height: int, width: int) -> list[Box]:
    """Return what a view shows of an image: one box, or those of its tiles, row by row."""
    if view.geometry == "stretch":
        high, wide = float(height), float(width)
    else:
        high = wide = float(max(height, width) if view.geometry == "pad" else min(height, width))
    high, wide = high * view.crop, wide * view.crop
    top, left = (height - high) / 2, (width - wide) / 2
    n = view.tiles
    return [
        (top + high * i / n, left + wide * j / n, top + high * (i + 1) / n, left + wide * (j + 1) / n)
        for i in range(n)
        for j in range(n)
    ]


def _enlarged(image: torch.Tensor, box: Box, size: int) -> torch.Tensor:
    """Return a box of an image (C, H, W) as (C, size, size); beyond the image it is black."""
    top, bottom, first_row, last_row = _along(box[0], box[2], image.shape[1], size)
    left, right, first_column, last_column = _along(box[1], box[3], image.shape[2], size)
    target = (last_row - first_row, last_column - first_column)
    if target == (size, size):
        return _resized(image[:, top:bottom, left:right], target)
    found = image.new_zeros((image.shape[0], size, size))
    if min(target) > 0:
        inside = _resized(image[:, top:bottom, left:right], target)
        found[:, first_row:last_row, first_column:last_column] = inside
    return found


def _along(start: float, end: float, length: int, size: int) -> tuple[int, int, int, int]:
    """Return the pixels of an image that a box covers along one axis, and those of the input that show them."""
    first = min(max(round(start), 0), length - 1)
    last = max(min(round(end), length), first + 1)
    if start >= -0.5 and end <= length + 0.5:  # the box is inside
        return first, last, 0, size
    edges = max(start, 0.0), min(end, float(length))
    low, high = (min(max(round((edge - start) / (end - start) * size), 0), size) for edge in edges)
    if edges[1] - edges[0] >= 0.5:  # however thin the image is, it is seen
        low, high = min(low, size - 1), max(high, min(low, size - 1) + 1)
    return first, last, low, max(high, low)


def _resized(image: torch.Tensor, target: tuple[int, int]) -> torch.Tensor:
    if image.shape[1:] == target:
        return image
    try:
        resized = F.interpolate(image[None], target, mode="bilinear", antialias=True)
    except RuntimeError as error:
        raise ImageDecodeError(Unreadable.NOT_RESIZED, str(error).splitlines()[0]) from error
    return resized[0]


def _moved(image: torch.Tensor, view: View, key: bytes) -> torch.Tensor:
    """Apply a view's turn, random motion and flip to (C, S, S)."""
    if view.turn:
        image = torch.rot90(image, view.turn // 90, (1, 2))
    if view.seed is not None:
        image = _random_motion(image, sha256(key + view.name.encode()).digest())
    return image.flip(2) if view.flip else image


def _random_motion(image: torch.Tensor, drawn: bytes) -> torch.Tensor:
    """Turn an image about its centre and change its size, by amounts that 16 random bytes state."""
    turn, growth = (int.from_bytes(drawn[i : i + 8]) / 2**63 - 1 for i in (0, 8))  # from -1 to 1
    angle, scale = math.radians(MOST_DEGREES * turn), 1 + MOST_SCALE * growth
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    grid = F.affine_grid(torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]), [1, *image.shape], align_corners=False)
    moved = F.grid_sample(image[None].float(), grid, align_corners=False)
    return moved[0].round().clamp(0, 255).to(torch.uint8)
