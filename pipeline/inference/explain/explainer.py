"""Explainer: a head and its backbone, for what speaks for a class where in an image. Pixels in, maps out; knows no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.images import Decoding, decode_pixels, load_image
from hoarfrost.features.devices import choose_device
from hoarfrost.features.encoder.backbone import Backbone
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.explain.maps import Floats, contributions, evidence
from hoarfrost.inference.predict import Predictor

if TYPE_CHECKING:
    from hoarfrost.features.datasets.table import Content

Pixels = npt.NDArray[np.uint8]

AT_ONCE = 8  # images, whose feature maps are held


@dataclass(frozen=True)
class ExplainedImage:
    """What a head says of an image, and what speaks for it where.

    Attributes
    ----------
    embedding : ndarray (D,) float32
    probabilities, calibrated : ndarray (C,) float64
        As `hoarfrost.inference.predict.Prediction` has them.
    called : str
        The class at the operating point; of several labels those that it is called.
    subject : str
        The class, or label, that the map is of.
    cells : ndarray (cells, cells) float64
        What each cell adds to the evidence for it, see `hoarfrost.inference.explain.maps.evidence`.
    measure : str
        What the cells sum to, in words.
    """

    embedding: npt.NDArray[np.float32]
    probabilities: Floats
    calibrated: Floats
    called: str
    subject: str
    cells: Floats
    measure: str

    @property
    def evidence(self) -> float:
        """The sum of the cells."""
        return float(self.cells.sum())


class Explainer:
    """A head and its backbone in float32.

    Parameters
    ----------
    predictor : Predictor
    backbone : Backbone
        In float32, with the weights that the head's embeddings were made by.
    decoding : Decoding
        How the head's images were decoded.
    """

    def __init__(self, predictor: Predictor, backbone: Backbone, decoding: Decoding) -> None:
        self.predictor = predictor
        self.backbone = backbone
        self.decoding = decoding

    @property
    def measure(self) -> str:
        """What the cells of a map sum to, in words."""
        if self.predictor.head.is_multilabel or len(self.predictor.names) == 2:
            return "the logarithm of the odds, uncalibrated"
        return "the logit less the mean of the others'"

    @property
    def note(self) -> str:
        """What differs from the head's own embeddings; empty where nothing does."""
        kind = self.predictor.header.fingerprint.precision.partition(":")[0]
        if kind == "float32":
            return ""
        return f"the head's embeddings are in {kind}; maps, and probabilities beside them, are computed in float32"

    def class_number(self, name: str) -> int:
        """Find a class, or label, by its name.

        Raises
        ------
        HoarfrostError
            If there is none of that name.
        """
        names = self.predictor.names
        if name not in names:
            head = self.predictor.head.spec.name
            raise HoarfrostError(f"--class {name}: the head {head} knows no such class. It has: {', '.join(names)}.")
        return names.index(name)

    def prepared(self, content: "Content") -> tuple[Pixels, torch.Tensor]:
        """Decode an image as the head's were.

        Parameters
        ----------
        content : bytes, Frame, or ndarray (H, W) or (H, W, 3) uint8

        Returns
        -------
        pixels : ndarray (H, W) or (H, W, 3) uint8
            The whole image, for people.
        image : Tensor (3, S, S) uint8
            What the backbone takes.

        Raises
        ------
        ImageDecodeError
            If it cannot be read whole.
        """
        pixels = content if isinstance(content, np.ndarray) else decode_pixels(content, self.decoding)
        return pixels, load_image(pixels, self.decoding).expand(3, -1, -1)

    def explain(self, images: torch.Tensor, number: int | None = None) -> list[ExplainedImage]:
        """Explain images.

        Parameters
        ----------
        images : Tensor (n, 3, S, S) uint8
        number : int, optional
            The class to map the evidence for; by default of two classes the positive one, of more the one that the
            image is called, of several labels the most probable.
        """
        found: list[ExplainedImage] = []
        for some in torch.split(images, AT_ONCE):
            features = self.backbone.feature_maps(some).numpy()
            embeddings = features.mean(axis=(2, 3))
            prediction = self.predictor.predict(embeddings)
            maps = contributions(self.predictor.head.modules, features).maps  # (n, C, cells, cells)
            numbers = self._numbers(prediction.probabilities) if number is None else [number] * len(some)
            answers = self.predictor.answers(prediction.called)
            for i, each in enumerate(numbers):
                cells = evidence(maps[i : i + 1], each, multilabel=self.predictor.head.is_multilabel)[0]
                found.append(
                    ExplainedImage(
                        embeddings[i], prediction.probabilities[i], prediction.calibrated[i], answers[i],
                        self.predictor.names[each], cells, self.measure,
                    )
                )  # fmt: skip
        return found

    def _numbers(self, probabilities: Floats) -> Sequence[int]:
        if len(self.predictor.names) == 2 and not self.predictor.head.is_multilabel:
            return [1] * len(probabilities)
        return [int(number) for number in probabilities.argmax(axis=1)]


def open_explainer(
    head: SavedHead, *, weights: str | None = None, device: str = "auto", max_pixels: int | None = None
) -> Explainer:
    """Load the backbone that a head's embeddings were made by.

    Parameters
    ----------
    head : SavedHead
    weights : str, optional
        Where the weights are now, if not where they were.
    device : str
        See `hoarfrost.features.devices.choose_device`.
    max_pixels : int, optional
        Larger images are unreadable.

    Raises
    ------
    EncoderError
        If the encoder has no feature map.
    WeightsError
        If the weights cannot be had.
    FingerprintMismatchError
        If they are others, or images are decoded in another way now.
    """
    recipe, window = recipe_like(head.header, weights)
    recipe.encoder.require_feature_map()
    backbone = Backbone(recipe.checked_weights(), device=choose_device(device, "float32"), batch_size=AT_ONCE)
    decoding = Decoding(max_pixels or MAX_PIXELS, window, size=recipe.encoder.size)
    return Explainer(Predictor(head), backbone, decoding)
