"""Maps as pictures: evidence for a class in red, evidence against it in blue, over the image in grey."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from hoarfrost.features.decoding.pictures import fitted, text_width, with_texts
from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.inference.explain.maps import Floats, upsampled

Pixels = npt.NDArray[np.uint8]
Line = tuple[int, int, str]  # left, top, text

COLOURS = "coolwarm"  # blue to red in steps that look equal, also to the colour-blind
MOST_OPAQUE = 0.75  # so that the image is seen even where the map is strongest
SIDE = 320  # pixels of the longer side of a picture
EXAMPLE_SIDE = 112
SHEET_SIDE = 168
SHEET_COLUMNS, SHEET_ROWS = 4, 12
GAP, LINE = 12, 19
EXAMPLE_HEIGHT = EXAMPLE_SIDE + 3 * LINE + GAP  # with its lines below
BAR = 12
PAPER = 255
NOTE = "{cells} cells, one every {every} of {size} pixels, drawn bilinearly. Their sum is {total:+.2f}: {measure}."
SHEET_NOTE = "Red: evidence for the class whose probability is given. Blue: evidence against it."
RESEARCH = "Research use only. Not a medical device."


@dataclass(frozen=True)
class Shown:
    """What a picture shows of an image.

    `pixels` (H, W) or (H, W, 3) uint8 are the whole image, `cells` its map for the class `subject`, of `encoder`, and
    `measure` is what they sum to. `lines` are the caption: file, label, prediction. `examples` are pixels and captions of
    training images.
    """

    pixels: Pixels
    cells: Floats
    encoder: EncoderSpec
    lines: tuple[str, ...]
    subject: str
    measure: str
    examples: Sequence[tuple[Pixels, tuple[str, ...]]] = ()


def overlay(pixels: Pixels, cells: Floats, encoder: EncoderSpec, side: int = SIDE) -> Pixels:
    """Return an image in grey under the colours of a map, (h, w, 3) uint8.

    Parameters
    ----------
    pixels : ndarray (H, W) or (H, W, 3) uint8
    cells : ndarray (cells, cells) float64
        Evidence for a class is above zero. Zero leaves the image unchanged; the largest absolute value of this map is the
        strongest colour.
    encoder : EncoderSpec
        The network that the feature map is of.
    side : int
        Pixels of the longer side of the picture.
    """
    picture = fitted(pixels, side)
    grey = picture.mean(axis=2, keepdims=True)
    height, width = picture.shape[:2]
    strength = upsampled(cells, height, width, encoder) / _largest(cells)
    return _blended(np.broadcast_to(grey, picture.shape), strength)


def _largest(cells: Floats) -> float:
    return max(float(np.abs(cells).max()), np.finfo(float).tiny)


def _blended(grey: npt.NDArray[np.floating], strength: Floats) -> Pixels:
    """Colour (H, W, 3) grey by strengths (H, W) from -1 to 1."""
    table = _colour_table()
    colour = table[np.rint((strength + 1) / 2 * (len(table) - 1)).astype(np.int64)]  # (H, W, 3)
    opacity = MOST_OPAQUE * np.abs(strength)[..., None]
    return np.rint(grey * (1 - opacity) + colour * opacity).astype(np.uint8)


@cache
def _colour_table() -> Floats:
    """Return 256 colours from blue to red, (256, 3)."""
    from matplotlib import colormaps

    found: Floats = colormaps[COLOURS](np.arange(256))[:, :3] * 255
    return found


def legend(width: int) -> Pixels:
    """Draw the colours from the strongest against to the strongest for, over middle grey."""
    strength = np.broadcast_to(np.linspace(-1, 1, width), (BAR, width))
    return _blended(np.full((BAR, width, 3), 128.0), strength)


def card(shown: Shown) -> Pixels:
    """Draw an image beside its overlay, with caption, legend and training examples."""
    original, coloured = fitted(shown.pixels, SIDE), overlay(shown.pixels, shown.cells, shown.encoder)
    height, width = original.shape[:2]
    note = _note(shown)
    n_columns = 2 * GAP + max(2 * width + GAP, 2 * SIDE + GAP, *map(text_width, (*shown.lines[1:], note)))
    top = GAP + len(shown.lines) * LINE + 4
    bar_top = top + height + GAP
    examples_top = bar_top + BAR + 2 * LINE + GAP
    n_in_row = (n_columns - GAP) // (EXAMPLE_SIDE + GAP)
    n_rows = examples_top + -(-len(shown.examples) // n_in_row) * EXAMPLE_HEIGHT + 2 * LINE + GAP
    paper = np.full((n_rows, n_columns, 3), PAPER, np.uint8)
    _paste(paper, original, top, GAP)
    _paste(paper, coloured, top, 2 * GAP + width)
    _paste(paper, legend(n_columns - 2 * GAP), bar_top, GAP)
    texts = [
        *_caption(shown.lines, GAP, GAP, n_columns - 2 * GAP),
        *_legend_texts(shown, bar_top + BAR + 2, n_columns),
        (GAP, bar_top + BAR + 2 + LINE, note),
        *_paste_examples(paper, shown, examples_top, n_in_row),
        (GAP, n_rows - LINE, RESEARCH),
    ]
    return with_texts(paper, texts)


def _note(shown: Shown) -> str:
    every, total = shown.encoder.require_feature_map().cell_pixels, float(shown.cells.sum())
    cells = " x ".join(map(str, shown.cells.shape))
    return NOTE.format(cells=cells, every=every, size=len(shown.cells) * every, total=total, measure=shown.measure)


def _legend_texts(shown: Shown, top: int, width: int) -> list[Line]:
    largest = _largest(shown.cells)
    left, right = f"{-largest:.3f} per cell: against", f"for {shown.subject}: {largest:+.3f} per cell"
    return [(GAP, top, left), ((width - text_width("0")) // 2, top, "0"), (width - GAP - text_width(right), top, right)]


def _paste_examples(paper: Pixels, shown: Shown, top: int, n_in_row: int) -> Iterator[Line]:
    """Paste the training examples in rows, and yield their texts."""
    if shown.examples:
        yield GAP, top, "Nearest training images, by distance between standardised embeddings:"
    for i, (pixels, lines) in enumerate(shown.examples):
        left, upper = GAP + i % n_in_row * (EXAMPLE_SIDE + GAP), top + LINE + i // n_in_row * EXAMPLE_HEIGHT
        _paste(paper, fitted(pixels, EXAMPLE_SIDE), upper, left)
        yield from _caption(lines, left, upper + EXAMPLE_SIDE + 2, EXAMPLE_SIDE)


def _caption(lines: Sequence[str], left: int, top: int, width: int) -> list[Line]:
    return [(left, top + i * LINE, shortened(line, width)) for i, line in enumerate(lines)]


def _paste(paper: Pixels, picture: Pixels, top: int, left: int) -> None:
    height, width = picture.shape[:2]
    paper[top : top + height, left : left + width] = picture


def shortened(text: str, width: int) -> str:
    """Cut off a text's beginning, so that it fits: the end of a path is the file's name."""
    if text_width(text) <= width:
        return text
    while text and text_width(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


def sheet_of(shown: Sequence[Shown]) -> Pixels:
    """Draw up to 48 images beside their overlays, each under its caption."""
    above = max(len(one.lines) for one in shown) * LINE
    cell_width, cell_height = 2 * SHEET_SIDE + 2 * GAP, SHEET_SIDE + above + GAP
    n_columns = min(SHEET_COLUMNS, len(shown))
    n_rows = -(-len(shown) // n_columns)
    paper = np.full((n_rows * cell_height + GAP + 2 * LINE, n_columns * cell_width + GAP, 3), PAPER, np.uint8)
    texts = [(GAP, len(paper) - 2 * LINE, SHEET_NOTE), (GAP, len(paper) - LINE, RESEARCH)]
    for i, one in enumerate(shown):
        top, left = GAP + i // n_columns * cell_height, GAP + i % n_columns * cell_width
        texts += _caption(one.lines, left, top - 4, cell_width - GAP)
        coloured = overlay(one.pixels, one.cells, one.encoder, SHEET_SIDE)
        for j, picture in enumerate((fitted(one.pixels, SHEET_SIDE), coloured)):
            _paste(paper, picture, top + above - 2, left + j * (SHEET_SIDE + 4))
    return with_texts(paper, texts)
