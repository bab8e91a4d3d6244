"""Explainer: a head and its backbone, which show where in an image the evidence for a class lies. Pixels in, maps out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.looks import Seen, seen_in
from hoarfrost.features.decoding.views import View, parse_views
from hoarfrost.features.devices import choose_device
from hoarfrost.features.encoder.backbone import Backbone
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.features.fingerprint import image_key
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.explain.drawing import Pixels
from hoarfrost.inference.explain.maps import Floats, LookMaps, embeddings_of, evidence_maps, spread_of
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
        Of the head's first view.
    probabilities, calibrated : ndarray (C,) float64
        See `hoarfrost.inference.predict.Prediction`.
    called : str
        The predicted class, or all predicted labels.
    subject : str
        The class, or label, that the map is of.
    cells : ndarray (T, T) float64
        What each cell adds to the evidence for it, see `hoarfrost.inference.explain.maps.evidence`. The grid is that of the
        encoder's last layer in the largest view.
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
        is_binary = self.predictor.head.is_multilabel or len(self.predictor.names) == 2
        what = (
            "the logarithm of the odds, uncalibrated" if is_binary else "the logit minus the mean of the other logits"
        )
        layers, n_views = self.predictor.header.fingerprint.layers, len(self.predictor.head.views)
        summed = [f"{n_views} views"] if n_views > 1 else []
        summed += [f"layers {' and '.join(map(str, layers))}"] if layers else []
        return f"{what}; {', '.join(summed)} together" if summed else what

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

    @property
    def views(self) -> tuple[View, ...]:
        """The views that the head looks at."""
        return parse_views(",".join(self.predictor.head.views), self.backbone.encoder)

    def prepared(self, content: "Content") -> tuple[Pixels, Seen]:
        """Decode an image as the head's images were decoded.

        Returns
        -------
        pixels : ndarray (H, W) or (H, W, 3) uint8
            The whole image, for people.
        seen : Seen
            The image as the encoder sees it.

        Raises
        ------
        ImageDecodeError
            If it cannot be read completely.
        """
        largest = max(view.size for view in self.views)
        pixels = content if isinstance(content, np.ndarray) else decode_pixels(content, self.decoding.at(largest))
        return pixels, seen_in(content, image_key(content), self.views, self.decoding)

    def explain(self, images: Sequence[Seen], number: int | None = None) -> list[ExplainedImage]:
        """Explain images.

        Parameters
        ----------
        images : sequence of Seen
        number : int, optional
            The class to map the evidence for. The default is the positive one of two classes, the predicted one of more,
            and the most probable of several labels.
        """
        found: list[ExplainedImage] = []
        for first in range(0, len(images), AT_ONCE):
            looks = self._looks(images[first : first + AT_ONCE])
            embeddings = embeddings_of(looks).float().numpy()  # (n, V, D)
            prediction = self.predictor.predict(embeddings)
            subjects = self._subjects(prediction.probabilities)
            numbers = subjects if number is None else [number] * len(subjects)
            maps = evidence_maps(self.predictor.committee, looks, numbers)  # (n, T, T)
            answers = self.predictor.answers(prediction.called)
            for i, each in enumerate(numbers):
                found.append(
                    ExplainedImage(
                        embeddings[i, 0], prediction.probabilities[i], prediction.calibrated[i], answers[i],
                        self.predictor.names[each], maps[i],
                    )
                )  # fmt: skip
        return found

    def _looks(self, images: Sequence[Seen]) -> list[LookMaps]:
        """Return the feature maps of every look at some images, and where their cells lie."""
        stages, shapes = (
            self.backbone.encoder.stages_of(self.predictor.header.fingerprint.layers),
            [i.shape for i in images],
        )
        grid = (max(view.size for view in self.views), stages[-1])
        found, place = [], 0
        for number, view in enumerate(self.views):
            for tile in range(view.n_looks):
                maps = self.backbone.feature_maps(in_colour([image.looks[place] for image in images]))
                spread = tuple(spread_of(view, tile, shapes, stage, grid) for stage in stages)
                found.append(LookMaps(tuple(each.numpy() for each in maps), number, 1 / view.n_looks, spread))
                place += 1
        return found

    def _subjects(self, probabilities: Floats) -> Sequence[int]:
        if len(self.predictor.names) == 2 and not self.predictor.head.is_multilabel:
            return [1] * len(probabilities)
        return [int(number) for number in probabilities.argmax(axis=1)]


def in_colour(looks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return looks (C, S, S) as one batch (n, 3, S, S); a grey channel is repeated."""
    return torch.stack([look.expand(3, -1, -1) for look in looks])


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
    recipe.encoder.require_feature_map(head.header.fingerprint.layers)
    backbone = Backbone(
        recipe.checked_weights(), device=choose_device(device, "float32"), batch_size=AT_ONCE,
        layers=head.header.fingerprint.layers,
    )  # fmt: skip
    decoding = Decoding(max_pixels or MAX_PIXELS, window, size=recipe.encoder.size)
    return Explainer(Predictor(head), backbone, decoding)
