"""A head that answers for single images: decoded in a process of their own, embedded in batches, explained on request."""

import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding, encode_png
from hoarfrost.features.decoding.isolated import Cancellation, DecoderCrashError, decode_isolated
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.devices import choose_device
from hoarfrost.features.encoder.backbone import Backbone
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.features.fingerprint import bytes_key, image_key
from hoarfrost.inference.explain import Cases, Explainer, overlay
from hoarfrost.inference.export.metadata import operating_points
from hoarfrost.inference.predict import Predictor
from hoarfrost.inference.predict.opening import run_head
from hoarfrost.inference.serve.answers import About, Answer, Explanation, Neighbour, Threshold
from hoarfrost.inference.serve.batcher import LARGEST_BATCH
from hoarfrost.inference.serve.limits import Limits
from hoarfrost.runs import read_heads

if TYPE_CHECKING:
    import numpy.typing as npt

N_NEIGHBOURS = 6


class HeadReader:
    """Reads images and answers for them with one head.

    `explainer` has its backbone in float32; `backbone` makes embeddings as the head's own were made.
    """

    def __init__(self, explainer: Explainer, backbone: Backbone, cases: Cases, limits: Limits) -> None:
        self.predictor = explainer.predictor
        self._explainer, self._backbone, self._cases, self._limits = explainer, backbone, cases, limits
        self._computing = threading.Lock()  # the backbone's threads use all cores
        self._looking = threading.Lock()  # HDF5 and the pictures in memory are for one thread at a time
        self.about = _about(self.predictor, limits, cases.n_training)

    def decode(self, content: bytes, cancellation: Cancellation) -> torch.Tensor:
        """Decode to (3, S, S) uint8, in another process: a hostile file may crash a decoder.

        Raises
        ------
        ImageDecodeError
            If it is not an image, is damaged, or is too large.
        """
        if not content:
            raise ImageDecodeError(Unreadable.EMPTY)
        decoding = self._explainer.decoding
        try:
            pixels = decode_isolated(
                content, 0, self._limits.max_pixels, decoding.window,
                size=decoding.size, seconds=self._limits.seconds, cancellation=cancellation,
            )  # fmt: skip
        except DecoderCrashError as error:
            raise ImageDecodeError(Unreadable.GAVE_UP, str(error)) from error
        return load_image(pixels, decoding).expand(3, -1, -1)

    def answer(self, images: Sequence[torch.Tensor]) -> list[Answer]:
        """Answer for a batch of (3, S, S) uint8."""
        with self._computing:
            embeddings = self._backbone.embed(torch.stack(list(images))).numpy()
        found, names = self.predictor.predict(embeddings), self.predictor.names
        limit = self.predictor.novelty_threshold
        assert found.distances is not None
        # With several labels per image, a set has two columns per label: may it be absent, may it be present.
        in_set = found.sets if found.sets.ndim == 2 else found.sets[:, :, 1]
        return [
            Answer(
                head=self.predictor.head.name,
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

    def trained_on(self, content: bytes) -> bool | None:
        """Return whether a file of these bytes, or its first frame, was in the training split; None if not known."""
        digest = bytes_key(content)
        known = self._cases.trained_on(digest)
        return self._cases.trained_on(image_key(EncodedFrame(content, digest, 1, 1))) if known is False else known

    def explain(self, image: torch.Tensor, answer: Answer) -> Answer:
        """Add where in the image the evidence lies, and the nearest training images; nothing without a feature map."""
        if self.about.map_cells is None:
            return answer
        with self._computing:
            found = self._explainer.explain(image[None])[0]
        with self._looking:
            nearest = self._cases.nearest(found, b"", "")
            pictures = self._cases.pictures(nearest)
        pixels = image.permute(1, 2, 0).numpy()  # (S, S, 3)
        encoder = self.predictor.header.fingerprint.encoder
        drawn = overlay(pixels, found.cells, encoder, encoder.size)
        neighbours = [
            Neighbour(
                label=one.label, path=one.path, distance=one.distance,
                picture=_uri(pictures[one.path]) if one.path in pictures else None,
            )
            for one in nearest
        ]  # fmt: skip
        why = Explanation(image=_uri(pixels), map=_uri(drawn), map_of=found.subject, nearest=neighbours)
        return answer.model_copy(update={"explanation": why})


@contextmanager
def opened_reader(
    run: Path, head: str | None, limits: Limits, *, weights: str | None, device: str, notes: list[str]
) -> Iterator[HeadReader]:
    """Open a run's head, its backbone and its training images.

    `weights` is where the backbone's weights are now, if they were moved; `notes` gets what is missing.

    Raises
    ------
    HoarfrostError
        One of its children: run, weights, fingerprint.
    """
    heads = read_heads(run)
    saved = run_head(heads, head)
    recipe, window = recipe_like(saved.header, weights)
    precision = saved.header.fingerprint.precision
    found = recipe.checked_weights()
    backbone = Backbone(found, device=choose_device(device, precision), precision=precision, batch_size=LARGEST_BATCH)
    in_float32 = backbone
    if precision != "float32":
        in_float32 = Backbone(found, device=choose_device(device, "float32"), batch_size=LARGEST_BATCH)
    explainer = Explainer(Predictor(saved), in_float32, Decoding(limits.max_pixels, window, size=recipe.encoder.size))
    with ExitStack() as stack:
        cases = Cases.opened(run, explainer, N_NEIGHBOURS, notes, stack)
        yield HeadReader(explainer, backbone, cases, limits)


def _about(predictor: Predictor, limits: Limits, n_training: int | None) -> About:
    points = predictor.head.validated[0].points
    encoder = predictor.header.fingerprint.encoder
    has_point = not predictor.head.is_multilabel and len(points) > 0
    deciding = {one["class"]: one for one in reversed(operating_points(predictor.head))}  # the first of each class
    return About(
        head=predictor.head.name,
        classes=list(predictor.names),
        positive=predictor.names[1] if has_point else None,
        threshold=points[0][0].threshold if has_point else None,
        thresholds={name: Threshold(rule=one["rule"], value=one["threshold"]) for name, one in deciding.items()},
        weights=predictor.header.weights,
        fingerprint=predictor.header.fingerprint.digest,
        trained_on=n_training,
        coverage=predictor.coverage,
        map_cells=encoder.size // encoder.stages[-1].cell_pixels if encoder.stages else None,
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
    )


def _uri(pixels: "npt.NDArray[np.uint8]") -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
