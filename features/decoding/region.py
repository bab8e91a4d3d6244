"""The region of an image: its box, with a margin, cut out of the decoded pixels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from hoarfrost.features.errors import ImageDecodeError

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

OUTSIDE, OTHER_SIZE = "the box is outside of the image", "the mask has another size than the image"

Box = tuple[float, float, float, float]  # x0, y0, x1 and y1, in pixels of the image, x1 and y1 exclusive


class Region(NamedTuple):
    """Where an image's region is.

    `margin` is added at each side of the box, as a share of its longer side. `of` is the height and width of the masks
    that the box is around; None without masks.
    """

    box: Box
    margin: float
    of: tuple[int, int] | None = None

    @classmethod
    def parsed(cls, values: Sequence[Any]) -> Self:
        """Return a region from the lists that JSON makes of it."""
        (x0, y0, x1, y1), margin, of = values
        return cls((x0, y0, x1, y1), margin, None if of is None else (of[0], of[1]))

    def cut(self, pixels: "Pixels") -> "Pixels":
        """Return the part of an image (H, W) or (H, W, 3), decoded at its own size, that is within the box and its margin.

        Raises
        ------
        ImageDecodeError
            If the box is outside of the image, or the masks have another size.
        """
        (height, width), (x0, y0, x1, y1) = pixels.shape[:2], self.box
        if self.of not in {None, (height, width)}:
            raise ImageDecodeError(OTHER_SIZE)
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise ImageDecodeError(OUTSIDE)
        more = self.margin * max(x1 - x0, y1 - y0)
        edges: npt.NDArray[np.int64] = np.round([y0 - more, y1 + more, x0 - more, x1 + more]).astype(np.int64)
        top, bottom, left, right = np.clip(edges, 0, [height, height, width, width]).tolist()
        bottom, right = max(bottom, top + 1), max(right, left + 1)
        if top >= height or left >= width:
            raise ImageDecodeError(OUTSIDE)
        return np.ascontiguousarray(pixels[top:bottom, left:right])
