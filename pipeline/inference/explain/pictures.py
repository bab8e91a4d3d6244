"""Maps as pictures: what speaks for a class in red, what speaks against it in blue, over the image in grey."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from hoarfrost.features.decoding.pictures import fitted, text_width, with_texts
from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.inference.explain.maps import Floats, upsampled

Pixels = npt.NDArray[np.uint8]

COLOURS = "coolwarm"  # blue to red, each step equally far from the next to the eye, and told apart by the colour-blind
MOST_OPAQUE = 0.75  # so that the image is seen even where the map is strongest
SIDE = 320  # pixels of the longer side of a picture
EXAMPLE_SIDE = 112
SHEET_SIDE = 168
SHEET_COLUMNS, SHEET_ROWS = 4, 12
GAP, LINE = 12, 19
EXAMPLE_HEIGHT = EXAMPLE_SIDE + 3 * LINE + GAP  # with its lines below
BAR = 12
PAPER = 255
NOTE = "{cells} cells, one every {every} pixels of {size}, drawn bilinearly. They sum to {total:+.2f}: {measure}."
RESEARCH = "Research use only. Not a medical device."


@dataclass(frozen=True)
class Shown:
    """What a picture shows of an image.

    `pixels` (H, W) or (H, W, 3) uint8 are the whole image, `cells` its map, of `encoder`, `title` what is said of it,
    `subject` what red speaks for, `measure` what the cells sum to, and `examples` are the pixels and the lines of training
    images.
    """

    pixels: Pixels
    cells: Floats
    encoder: EncoderSpec
    title: str
    subject: str
    measure: str
    examples: Sequence[tuple[Pixels, tuple[str, ...]]] = ()


def overlay(pixels: Pixels, cells: Floats, encoder: EncoderSpec, side: int = SIDE) -> Pixels:
    """Lay a map over an image.

    Parameters
    ----------
    pixels : ndarray (H, W) or (H, W, 3) uint8
    cells : ndarray (cells, cells) float64
        What speaks for something is above zero.
    encoder : EncoderSpec
        Whose feature map they are of.
    side : int
        What the picture's longer side measures.

    Returns
    -------
    ndarray (h, w, 3) uint8
        Zero leaves the image as it is; the largest absolute value of this map is the strongest colour.
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
    """Give 256 colours from blue to red, (256, 3)."""
    from matplotlib import colormaps

    found: Floats = colormaps[COLOURS](np.arange(256))[:, :3] * 255
    return found


def legend(width: int) -> Pixels:
    """Draw the colours from the strongest against to the strongest for, over middle grey."""
    strength = np.broadcast_to(np.linspace(-1, 1, width), (BAR, width))
    return _blended(np.full((BAR, width, 3), 128.0), strength)


def card(shown: Shown) -> Pixels:
    """Draw an image beside its overlay, with title, legend and training examples."""
    original, laid = fitted(shown.pixels, SIDE), overlay(shown.pixels, shown.cells, shown.encoder)
    height, width = original.shape[:2]
    n_columns = max(2 * width + 3 * GAP, text_width(shown.title) + 2 * GAP, 2 * SIDE + 3 * GAP)
    top = GAP + LINE + 4
    bar_top = top + height + GAP
    examples_top = bar_top + BAR + 2 * LINE + GAP
    n_in_row = (n_columns - GAP) // (EXAMPLE_SIDE + GAP)
    n_rows = examples_top + -(-len(shown.examples) // n_in_row) * EXAMPLE_HEIGHT + 2 * LINE + GAP
    paper = np.full((n_rows, n_columns, 3), PAPER, np.uint8)
    _put(paper, original, top, GAP)
    _put(paper, laid, top, 2 * GAP + width)
    _put(paper, legend(n_columns - 2 * GAP), bar_top, GAP)
    texts = [(GAP, GAP, shown.title), *_legend_texts(shown, bar_top + BAR + 2, n_columns)]
    texts += [*_put_examples(paper, shown, examples_top, n_in_row), (GAP, n_rows - LINE, RESEARCH)]
    return with_texts(paper, texts)


def _legend_texts(shown: Shown, top: int, width: int) -> list[tuple[int, int, str]]:
    largest = _largest(shown.cells)
    left, right = f"{-largest:.3f} a cell: against", f"for {shown.subject}: {largest:+.3f} a cell"
    note = NOTE.format(
        cells=" x ".join(map(str, shown.cells.shape)),
        every=shown.encoder.require_feature_map().cell_pixels,
        size=shown.encoder.size,
        total=float(shown.cells.sum()),
        measure=shown.measure,
    )
    middle = (width - text_width("0")) // 2
    return [
        (GAP, top, left),
        (middle, top, "0"),
        (width - GAP - text_width(right), top, right),
        (GAP, top + LINE, note),
    ]


def _put_examples(paper: Pixels, shown: Shown, top: int, n_in_row: int) -> list[tuple[int, int, str]]:
    """Put the training examples in rows, and give their texts."""
    if not shown.examples:
        return []
    texts = [(GAP, top, "Nearest training images, by standardised embedding:")]
    for i, (pixels, lines) in enumerate(shown.examples):
        left, upper = GAP + i % n_in_row * (EXAMPLE_SIDE + GAP), top + LINE + i // n_in_row * EXAMPLE_HEIGHT
        _put(paper, fitted(pixels, EXAMPLE_SIDE), upper, left)
        below = upper + EXAMPLE_SIDE + 2
        texts += [(left, below + j * LINE, shortened(line, EXAMPLE_SIDE)) for j, line in enumerate(lines)]
    return texts


def _put(paper: Pixels, picture: Pixels, top: int, left: int) -> None:
    height, width = picture.shape[:2]
    paper[top : top + height, left : left + width] = picture


def shortened(text: str, width: int) -> str:
    """Cut a text's beginning off, so that it fits: of a path the end tells more."""
    if text_width(text) <= width:
        return text
    while text and text_width(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


def sheet_of(shown: Sequence[tuple[str, Shown]]) -> Pixels:
    """Draw up to 48 images beside their overlays, each under a caption."""
    cell_width, cell_height = 2 * SHEET_SIDE + 2 * GAP, SHEET_SIDE + 2 * LINE + GAP
    n_columns = min(SHEET_COLUMNS, len(shown))
    n_rows = -(-len(shown) // n_columns)
    paper = np.full((n_rows * cell_height + GAP, n_columns * cell_width + GAP, 3), PAPER, np.uint8)
    texts = []
    for i, (caption, one) in enumerate(shown):
        top, left = GAP + i // n_columns * cell_height, GAP + i % n_columns * cell_width
        texts += [(left, top - 4, shortened(caption, cell_width - GAP)), (left, top + LINE - 6, one.title)]
        laid = overlay(one.pixels, one.cells, one.encoder, SHEET_SIDE)
        for j, picture in enumerate((fitted(one.pixels, SHEET_SIDE), laid)):
            _put(paper, picture, top + 2 * LINE - 6, left + j * (SHEET_SIDE + 4))
    return with_texts(paper, texts)
