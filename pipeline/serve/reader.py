"""A head that answers for single images: decoded apart, embedded in batches, explained when asked."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from features.apart import DecoderCrashError, decoded_apart
from features.errors import ImageDecodeError
from features.images import load_image
from pipeline.predict import Predictor
from pipeline.serve.answers import About, Answer
from pipeline.serve.limits import Limits

if TYPE_CHECKING:
    from features.backbone import Backbone
    from features.windows import Window


class HeadReader:
    """Reads images and answers for them by one head.

    Parameters
    ----------
    predictor : Predictor
    backbone : Backbone
        That makes embeddings as the head's own were made.
    window : Window or None
        What of grey DICOM images is shown.
    limits : Limits
    n_training : int or None
        Images that the head learnt from, where that is known.
    """

    def __init__(
        self,
        predictor: Predictor,
        backbone: "Backbone",
        window: "Window | None",
        limits: Limits,
        n_training: int | None,
    ) -> None:
        self.predictor = predictor
        self._backbone = backbone
        self._window = window
        self._limits = limits
        self._one_at_a_time = threading.Lock()
        self.about = _about(predictor, limits, n_training)

    def decode(self, content: bytes) -> torch.Tensor:
        """Decode to (3, 224, 224) uint8, in another process: what a stranger sends may crash a decoder.

        Raises
        ------
        ImageDecodeError
            If it is no image, a damaged one, or too large.
        """
        if not content:
            raise ImageDecodeError("the file is empty")
        try:
            pixels = decoded_apart(content, 0, self._limits.max_pixels, self._window, seconds=self._limits.seconds)
        except DecoderCrashError as error:
            raise ImageDecodeError(f"its decoder gave up: {error}") from error
        return load_image(pixels).expand(3, -1, -1)

    def answer(self, images: Sequence[torch.Tensor]) -> list[Answer]:
        """Answer for a batch of (3, 224, 224) uint8."""
        with self._one_at_a_time:
            embeddings = self._backbone.embed(torch.stack(list(images))).numpy()
        found = self.predictor.predict(embeddings)
        head, names = self.predictor.head, self.predictor.names
        limit = self.predictor.novelty_threshold
        assert found.distances is not None
        # With several labels an image a set has two columns a label: may it be absent, may it be present.
        in_set = found.sets if found.sets.ndim == 2 else found.sets[:, :, 1]
        return [
            Answer(
                head=head.spec.name,
                probabilities=dict(zip(names, found.calibrated[i].tolist(), strict=True)),
                called=[names[k] for k in np.flatnonzero(found.called[i])],
                conformal_set=[names[k] for k in np.flatnonzero(in_set[i])],
                coverage=self.predictor.coverage,
                distance=float(found.distances[i]),
                distance_limit=limit if np.isfinite(limit) else None,
                is_out_of_distribution=None if found.is_novel is None else bool(found.is_novel[i]),
            )
            for i in range(len(images))
        ]


def _about(predictor: Predictor, limits: Limits, n_training: int | None) -> About:
    points = predictor.head.validated[0].points
    has_point = not predictor.head.is_multilabel and len(points) > 0
    return About(
        head=predictor.head.spec.name,
        classes=list(predictor.names),
        positive=predictor.names[1] if has_point else None,
        threshold=points[0][0].threshold if has_point else None,
        weights=predictor.header.weights,
        fingerprint=predictor.header.fingerprint.digest,
        trained_on=n_training,
        coverage=predictor.coverage,
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
    )
