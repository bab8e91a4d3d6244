"""A head that answers for single images: decoded in a process of their own, embedded in batches, explained on request."""

import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding, encode_png
from hoarfrost.features.decoding.isolated import Cancellation, DecoderCrashError
from hoarfrost.features.decoding.looks import Seen
from hoarfrost.features.decoding.quarantine import seen_isolated
from hoarfrost.features.decoding.views import map_cells, standard_view
from hoarfrost.features.devices import choose_device
from hoarfrost.features.encoder.backbone import Backbone
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.features.fingerprint import bytes_key, image_key
from hoarfrost.inference.explain import Cases, Explainer, in_colour, overlay
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

    def decode(self, content: bytes, cancellation: Cancellation) -> Seen:
        """Decode to what the encoder sees, in another process: a hostile file may crash a decoder.

        The last look is for people: the whole image, whatever the head's views show.

        Raises
        ------
        ImageDecodeError
            If it is not an image, is damaged, or is too large.
        """
        if not content:
            raise ImageDecodeError(Unreadable.EMPTY)
        explainer = self._explainer
        try:
            views = (*explainer.views, standard_view(explainer.backbone.encoder))
            return seen_isolated(
                content, bytes_key(content), views, explainer.decoding, seconds=self._limits.seconds,
                cancellation=cancellation,
            )  # fmt: skip
        except DecoderCrashError as error:
            raise ImageDecodeError(Unreadable.GAVE_UP, str(error)) from error

    def answer(self, images: Sequence[Seen]) -> list[Answer]:
        """Answer for a batch."""
        with self._computing:
            embeddings = self._embedded(images)
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

    def _embedded(self, images: Sequence[Seen]) -> "npt.NDArray[np.float32]":
        """Return the embeddings (n, V, D) of all views."""
        found, place = [], 0
        for view in self._explainer.views:
            looks = [
                self._backbone.embed(in_colour([image.looks[place + tile] for image in images]))
                for tile in range(view.n_looks)
            ]
            place += view.n_looks
            found.append(looks[0] if len(looks) == 1 else torch.stack(looks).mean(0))
        return torch.stack(found, 1).numpy()

    def trained_on(self, content: bytes) -> bool | None:
        """Return whether a file of these bytes, or its first frame, was in the training split; None if not known."""
        digest = bytes_key(content)
        known = self._cases.trained_on(digest)
        return self._cases.trained_on(image_key(EncodedFrame(content, digest, 1, 1))) if known is False else known

    def explain(self, image: Seen, answer: Answer) -> Answer:
        """Add where in the image the evidence lies, and the nearest training images; nothing without a feature map."""
        if self.about.map_cells is None:
            return answer
        with self._computing:
            found = self._explainer.explain([image])[0]
        with self._looking:
            nearest = self._cases.nearest(found, b"", "")
            pictures = self._cases.pictures(nearest)
        pixels = image.looks[-1].expand(3, -1, -1).permute(1, 2, 0).numpy()  # (S, S, 3)
        drawn = overlay(pixels, found.cells, self.predictor.header.fingerprint.encoder, len(pixels))
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
    made = partial(Backbone, found, batch_size=LARGEST_BATCH, layers=saved.header.fingerprint.layers)
    backbone = made(device=choose_device(device, precision), precision=precision)
    in_float32 = backbone
    if precision != "float32":
        in_float32 = made(device=choose_device(device, "float32"))
    explainer = Explainer(Predictor(saved), in_float32, Decoding(limits.max_pixels, window, size=recipe.encoder.size))
    with ExitStack() as stack:
        cases = Cases.opened(run, explainer, N_NEIGHBOURS, notes, stack)
        yield HeadReader(explainer, backbone, cases, limits)


def _about(predictor: Predictor, limits: Limits, n_training: int | None) -> About:
    points = predictor.head.validated[0].points
    made_by = predictor.header.fingerprint
    encoder = made_by.encoder
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
        map_cells=map_cells(predictor.head.views, encoder) if encoder.stages_of(made_by.layers) else None,
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
    )


def _uri(pixels: "npt.NDArray[np.uint8]") -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
