"""Explainer: a head and its backbone, which show where in an image the evidence for a class lies. Pixels in, maps out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.devices import choose_device
from hoarfrost.features.encoder.backbone import Backbone
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.explain.drawing import Pixels
from hoarfrost.inference.explain.maps import Floats, evidence_maps
from hoarfrost.inference.predict import Predictor

if TYPE_CHECKING:
    from hoarfrost.features.datasets.table import Content

AT_ONCE = 8  # images whose feature maps are in memory


@dataclass(frozen=True)
class ExplainedImage:
    """What a head predicts for an image, and where the evidence lies.

    Attributes
    ----------
    embedding : ndarray (D,) float32
    probabilities, calibrated : ndarray (C,) float64
        See `hoarfrost.inference.predict.Prediction`.
    called : str
        The predicted class, or all predicted labels.
    subject : str
        The class, or label, that the map is of.
    cells : ndarray (cells, cells) float64
        What each cell adds to the evidence for it, see `hoarfrost.inference.explain.maps.evidence`.
    """

    embedding: npt.NDArray[np.float32]
    probabilities: Floats
    calibrated: Floats
    called: str
    subject: str
    cells: Floats

    @property
    def evidence(self) -> float:
        """The sum of the cells."""
        return float(self.cells.sum())


class Explainer:
    """A head and its backbone in float32; `decoding` is how the head's images were decoded."""

    def __init__(self, predictor: Predictor, backbone: Backbone, decoding: Decoding) -> None:
        self.predictor, self.backbone, self.decoding = predictor, backbone, decoding

    @property
    def measure(self) -> str:
        """What the sum of a map's cells is, in words."""
        if self.predictor.head.is_multilabel or len(self.predictor.names) == 2:
            return "the logarithm of the odds, uncalibrated"
        return "the logit minus the mean of the other logits"

    @property
    def note(self) -> str:
        """How the embeddings differ from the head's own; empty where they do not."""
        kind = self.predictor.header.fingerprint.precision.partition(":")[0]
        if kind == "float32":
            return ""
        return f"The head's embeddings are in {kind}. The maps, and the probabilities beside them, are computed in float32."

    def class_number(self, name: str) -> int:
        """Return the number of a class, or label.

        Raises
        ------
        HoarfrostError
            If the head has no class of that name.
        """
        names = self.predictor.names
        if name not in names:
            head = self.predictor.head.name
            raise HoarfrostError(f"--class {name}: the head {head} has no such class. Its classes: {', '.join(names)}.")
        return names.index(name)

    def prepared(self, content: "Content") -> tuple[Pixels, torch.Tensor]:
        """Decode an image as the head's images were decoded.

        Returns
        -------
        pixels : ndarray (H, W) or (H, W, 3) uint8
            The whole image, for people.
        image : Tensor (3, S, S) uint8
            The backbone's input.

        Raises
        ------
        ImageDecodeError
            If it cannot be read completely.
        """
        pixels = content if isinstance(content, np.ndarray) else decode_pixels(content, self.decoding)
        return pixels, load_image(pixels, self.decoding).expand(3, -1, -1)

    def explain(self, images: torch.Tensor, number: int | None = None) -> list[ExplainedImage]:
        """Explain images.

        Parameters
        ----------
        images : Tensor (n, 3, S, S) uint8
        number : int, optional
            The class to map the evidence for. The default is the positive one of two classes, the predicted one of more,
            and the most probable of several labels.
        """
        found: list[ExplainedImage] = []
        for some in torch.split(images, AT_ONCE):
            features = self.backbone.feature_maps(some)[-1].numpy()
            embeddings = features.mean(axis=(2, 3))
            prediction = self.predictor.predict(embeddings)
            numbers = self._subjects(prediction.probabilities) if number is None else [number] * len(some)
            maps = evidence_maps(self.predictor.committee, features, numbers)  # (n, cells, cells)
            answers = self.predictor.answers(prediction.called)
            for i, each in enumerate(numbers):
                found.append(
                    ExplainedImage(
                        embeddings[i], prediction.probabilities[i], prediction.calibrated[i], answers[i],
                        self.predictor.names[each], maps[i],
                    )
                )  # fmt: skip
        return found

    def _subjects(self, probabilities: Floats) -> Sequence[int]:
        if len(self.predictor.names) == 2 and not self.predictor.head.is_multilabel:
            return [1] * len(probabilities)
        return [int(number) for number in probabilities.argmax(axis=1)]


def open_explainer(
    head: SavedHead, *, weights: str | None = None, device: str = "auto", max_pixels: int | None = None
) -> Explainer:
    """Load the backbone that a head's embeddings were made with.

    `weights` is where the weights are now, if they were moved. Images of more than `max_pixels` are unreadable.

    Raises
    ------
    EncoderError
        If the encoder has no feature map.
    WeightsError
        If the weights are not available.
    FingerprintMismatchError
        If they are others, or images are now decoded in another way.
    """
    recipe, window = recipe_like(head.header, weights)
    recipe.encoder.require_feature_map()
    backbone = Backbone(recipe.checked_weights(), device=choose_device(device, "float32"), batch_size=AT_ONCE)
    decoding = Decoding(max_pixels or MAX_PIXELS, window, size=recipe.encoder.size)
    return Explainer(Predictor(head), backbone, decoding)
