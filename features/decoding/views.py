"""Views: the ways in which an encoder looks at an image. A view's name states all of its preprocessing. Loads no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.features.errors import ViewError

GEOMETRIES = ("stretch", "pad", "cover")
TURNS = ("rot90", "rot180", "rot270")
CROP_SHARE = 192 / 224  # of a "crop" without a number
LARGEST_SIZE = 2_048
MOST_TILES = 8
MOST_VIEWS = 64
HIGH = "high"
STANDARD = "standard"
REGION = "region"
OWN_SCALE = 1 << 20  # a size for which every JPEG is decoded at its own: regions are in the pixels of the file
GRAMMAR = (
    "SIZE[:region][:stretch|pad|cover][:crop[=SHARE]|:tiles=N][:rot90|:rot180|:rot270][:affine=SEED][:flip], as in "
    "448:pad:flip"
)


@dataclass(frozen=True)
class View:
    """One way of looking at an image. It depends on the image's bytes and on the name alone.

    Attributes
    ----------
    size : int
        Height and width of the encoder's input, in pixels.
    geometry : str
        How an image becomes a square: "stretch" changes its aspect ratio, "pad" adds black at two sides, "cover" cuts two
        sides off.
    crop : float
        Share of height and width that is kept around the centre, and enlarged.
    tiles : int
        The image is cut into tiles x tiles parts, each enlarged; the embedding is the mean of theirs.
    turn : int
        Counter-clockwise, in degrees: 0, 90, 180 or 270.
    seed : int or None
        Turn by up to 10 degrees and scale by 0.9 to 1.1, drawn for each image from its bytes and the view's name.
    flip : bool
        Exchange left and right.
    region : bool
        Show the image's region (`extract --region`) in place of the whole image: all else is done to that.
    """

    size: int
    geometry: str = "stretch"
    crop: float = 1.0
    tiles: int = 1
    turn: int = 0
    seed: int | None = None
    flip: bool = False
    region: bool = False

    @property
    def name(self) -> str:
        """The shortest name, which `parse_views` reads back: "224", "448:pad:crop=0.7:flip"."""
        parts = [str(self.size)]
        if self.region:
            parts.append(REGION)
        if self.geometry != "stretch":
            parts.append(self.geometry)
        if self.crop != 1:
            parts.append("crop" if self.crop == CROP_SHARE else f"crop={self.crop!r}")
        if self.tiles != 1:
            parts.append(f"tiles={self.tiles}")
        if self.turn:
            parts.append(f"rot{self.turn}")
        if self.seed is not None:
            parts.append(f"affine={self.seed}")
        if self.flip:
            parts.append("flip")
        return ":".join(parts)

    @property
    def group(self) -> str:
        """What it shares with views that a head learns from together: size, region, geometry and tiles."""
        return replace(self, crop=1.0, turn=0, seed=None, flip=False).name

    @property
    def decoded_size(self) -> int:
        """The size of a look at the whole image that shows as much detail: large JPEGs are decoded for it.

        That is twice as much as a look needs, so that a centre of half the side needs no more. A region may be any part.
        """
        return OWN_SCALE if self.region else max(self.size * self.tiles, math.ceil(self.size / (2 * self.crop)))

    @property
    def n_looks(self) -> int:
        """How many times the encoder runs for it."""
        return self.tiles**2


def standard_view(encoder: EncoderSpec) -> View:
    """Return the view that the encoder was trained with: the whole image, stretched to its input's size."""
    return View(encoder.size)


def parse_views(text: str, encoder: EncoderSpec) -> tuple[View, ...]:
    """Read names of views and of sets of views, separated by commas; a view that is named twice counts once.

    Raises
    ------
    ViewError
        If a name does not follow the grammar, or the encoder cannot look so.
    """
    found: dict[View, None] = {}
    for name in text.split(","):
        found.update(dict.fromkeys(_named_set(name.strip(), encoder) or (_parse(name.strip(), encoder),)))
    if len(found) > MOST_VIEWS:
        raise ViewError(f"--views {text}: {len(found)} views are more than {MOST_VIEWS}. Name fewer.")
    return tuple(found)


def _named_set(name: str, encoder: EncoderSpec) -> tuple[View, ...]:
    """Return the views of a set: the standard view; or the whole image, its mirror image and its centre, at two sizes."""
    one = standard_view(encoder)
    if name == STANDARD:
        return (one,)
    if name != HIGH:
        return ()
    sizes = [one] if encoder.size_step is None else [one, View(2 * encoder.size)]
    return tuple(view for size in sizes for view in (size, replace(size, flip=True), replace(size, crop=CROP_SHARE)))


def _parse(name: str, encoder: EncoderSpec) -> View:
    size, *parts = name.split(":")
    if not (size.isascii() and size.isdigit() and len(size) < 9):
        raise _refused(name, f"{size!r} is not a size in pixels")
    view = View(_checked_size(name, int(size), encoder))
    stated: set[str] = set()
    for part in parts:
        word, equals, value = part.partition("=")
        kind = "turn" if word in TURNS else "geometry" if word in GEOMETRIES else word
        if kind in stated:
            raise _refused(name, f"{kind} appears twice")
        stated.add(kind)
        view = _changed(view, name, word, value if equals else None)
    if view.crop != 1 and view.tiles != 1:
        raise _refused(name, "crop and tiles exclude each other")
    return view


def _checked_size(name: str, size: int, encoder: EncoderSpec) -> int:
    if size == encoder.size:
        return size
    if encoder.size_step is None:
        raise _refused(name, f"the encoder {encoder.title} takes {encoder.size} pixels only")
    if size % encoder.size_step or not encoder.size_step <= size <= LARGEST_SIZE:
        raise _refused(name, f"the size must be a multiple of {encoder.size_step}, and at most {LARGEST_SIZE}")
    return size


def _changed(view: View, name: str, word: str, value: str | None) -> View:
    """Return the view with what one part of its name states."""
    if word in GEOMETRIES and value is None:
        return replace(view, geometry=word)
    if word in TURNS and value is None:
        return replace(view, turn=int(word.removeprefix("rot")))
    if word == "flip" and value is None:
        return replace(view, flip=True)
    if word == REGION and value is None:
        return replace(view, region=True)
    if word == "crop":
        return replace(view, crop=CROP_SHARE if value is None else _share(name, value))
    if word == "tiles" and value is not None:
        return replace(view, tiles=_whole(name, word, value, 2, MOST_TILES))
    if word == "affine" and value is not None:
        return replace(view, seed=_whole(name, word, value, 0, 2**31 - 1))
    raise _refused(name, f"{word if value is None else f'{word}={value}'!r} is not known")


def _share(name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0.1 <= share < 1:
        raise _refused(name, f"crop must be a share of the side from 0.1 to below 1, not {value}")
    return CROP_SHARE if round(share, 3) == round(CROP_SHARE, 3) else share


def _whole(name: str, word: str, value: str, least: int, most: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 12 and least <= int(value) <= most):
        raise _refused(name, f"{word} must be a whole number from {least} to {most}, not {value}")
    return int(value)


def _refused(name: str, reason: str) -> ViewError:
    return ViewError(f"--views {name}: {reason}. A view is {GRAMMAR}; or use {STANDARD} or {HIGH}.")


def shows_region(name: str) -> bool:
    """Return whether a view shows an image's region, by its name as a user writes it."""
    return REGION in name.strip().split(":")


def grouped(views: Sequence[View]) -> dict[str, tuple[View, ...]]:
    """Return the views by `View.group`, groups and views in their order."""
    groups: dict[str, list[View]] = {}
    for view in views:
        groups.setdefault(view.group, []).append(view)
    return {name: tuple(some) for name, some in groups.items()}


def map_cells(names: Sequence[str], encoder: EncoderSpec) -> int:
    """Return the cells along each side of the last layer's map in the largest view; by default the encoder's own.

    Raises
    ------
    EncoderError
        If the encoder has no maps.
    """
    size = max((view.size for view in parse_views(",".join(names), encoder)) if names else (encoder.size,))
    return size // encoder.require_feature_map().cell_pixels
