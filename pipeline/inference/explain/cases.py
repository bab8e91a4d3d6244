"""A run's images, as far as they still exist: by label, by embedding and as pictures."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.features.decoding.pictures import fitted
from hoarfrost.features.errors import CacheError, DatasetError, ImageDecodeError, RemoteError
from hoarfrost.heads.files import SavedHead
from hoarfrost.heads.layers import Standardise
from hoarfrost.inference.explain.drawing import EXAMPLE_SIDE, Pixels
from hoarfrost.inference.explain.explainer import ExplainedImage, Explainer
from hoarfrost.inference.sources import RunSource, opened_source
from hoarfrost.runs import Run, read_run

KEPT_EXAMPLES = 1_000  # small pictures of training images; the same ones are often needed again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A training image that is similar to another image: `distance` is that between their standardised embeddings."""

    path: str
    label: str
    distance: float


class TrainingExamples:
    """The training images of a run, in which to find the most similar.

    Parameters
    ----------
    embeddings : ndarray (n, D) float32
    standardise : Standardise
        The head's first layer.
    paths, labels, patients : sequence of str, length n
        Unknown patients are "".
    keys : sequence of bytes, length n
        The digests of the images' contents.

    Notes
    -----
    Distances are Euclidean between transformed and standardised embeddings: what the head sees, each number in units of
    its own deviation. Cosines of raw embeddings would mostly measure what all images share.
    """

    def __init__(
        self,
        embeddings: npt.NDArray[np.float32],
        standardise: Standardise,
        paths: Sequence[str],
        labels: Sequence[str],
        patients: Sequence[str],
        keys: Sequence[bytes],
    ) -> None:
        self._standardise = standardise
        self._z = self._standardised(embeddings)
        self._squares = np.einsum("nk,nk->n", self._z, self._z, dtype=np.float64)
        self._paths, self._labels = paths, labels
        self._patients, self._keys = np.array(patients, object), np.array(keys, object)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    @cached_property
    def _known(self) -> frozenset[bytes]:
        return frozenset(self._keys.tolist())

    def _standardised(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(self._standardise(torch.from_numpy(embeddings)).numpy())

    def nearest(
        self, embedding: npt.NDArray[np.float32], n: int, *, key: bytes = b"", patient: str = ""
    ) -> tuple[Example, ...]:
        """Return the n nearest training images, the nearest first.

        `embedding` is (D,) float32. An image with the same `key` is skipped, under any path: it is the image itself.
        Images of the same `patient`, if known, are skipped too: they are not another case.
        """
        z = self._standardised(embedding)
        distances = np.sqrt(np.maximum(self._squares - 2 * (self._z @ z) + float(z @ z), 0))
        allowed = self._keys != key
        if patient:
            allowed &= self._patients != patient
        places = np.flatnonzero(allowed)
        order = places[np.argsort(distances[places], kind="stable")[:n]]
        return tuple(Example(self._paths[i], self._labels[i], float(distances[i])) for i in order)


def training_examples(run: Run, source: RunSource, head: SavedHead) -> TrainingExamples:
    """Read the training images of a run from its cache; raise CacheError if the embeddings cannot be read.

    They are compared in the head's first view. Of the members that look at it, the first with the largest weight decides
    how embeddings are standardised.
    """
    rows = [i for i, split in enumerate(run.predictions.splits) if split == "train"]
    paths, labels, patients = (
        [column[i] for i in rows]
        for column in (run.predictions.paths, run.predictions.labels, run.predictions.patients)
    )
    committee = head.committee
    of_first_view = [reading for reading in committee.readings if 0 in reading.places]
    standardise, _ = committee.parts()[max(of_first_view, key=lambda reading: reading.weight).member]
    return TrainingExamples(
        source.embeddings(paths, head.views[0]), standardise, paths, labels, patients, source.keys(paths)
    )


class Cases:
    """A run's images, as far as they are available; `n` training images are wanted for an image."""

    def __init__(self, explainer: Explainer, run: Run, n: int, source: RunSource | None = None) -> None:
        self._explainer, self._run, self._n, self._source = explainer, run, n, source
        self._examples: TrainingExamples | None = None
        if source is not None and n:
            self._examples = training_examples(run, source, explainer.predictor.head)
        self._has_images = source is not None
        self._pictures: dict[str, Pixels] = {}

    @classmethod
    def opened(cls, directory: Path, explainer: Explainer, n: int, notes: list[str], stack: ExitStack) -> "Cases":
        """Open the run's cache; if that fails, add a note of what is missing without it."""
        run = read_run(directory)
        try:
            return cls(explainer, run, n, stack.enter_context(opened_source(run)))
        except CacheError as error:
            notes.append(f"Skipped the nearest training images and the true labels. {error}")
            return cls(explainer, run, n)

    @property
    def n_training(self) -> int | None:
        """The number of training images; None where it is not known."""
        return None if self._examples is None else len(self._examples)

    def trained_on(self, key: bytes) -> bool | None:
        """Return whether an image, by the digest of its content, is a training image; None if that is not known."""
        return None if self._examples is None else key in self._examples

    @cached_property
    def _labels(self) -> dict[bytes, str]:
        if self._source is None:
            return {}
        return dict(zip(self._source.keys(self._run.predictions.paths), self._run.predictions.labels, strict=True))

    def label(self, key: bytes) -> str | None:
        """Return the label that the run has for an image, by the digest of its content; None if it is not known."""
        return self._labels.get(key)

    def nearest(self, explanation: ExplainedImage, key: bytes, patient: str) -> tuple[Example, ...]:
        """Find the nearest training images of other patients."""
        if self._examples is None:
            return ()
        return self._examples.nearest(explanation.embedding, self._n, key=key, patient=patient)

    def captioned(self, examples: Sequence[Example]) -> list[tuple[Pixels, tuple[str, ...]]]:
        """Return each example's picture, blank where it is not available, and its caption."""
        found = self.pictures(examples)
        blank = np.full((EXAMPLE_SIDE, EXAMPLE_SIDE), 200, np.uint8)
        return [
            (found.get(one.path, blank), (one.label or "(no label)", f"distance {one.distance:.1f}", one.path))
            for one in examples
        ]

    def pictures(self, examples: Sequence[Example]) -> dict[str, Pixels]:
        """Read pictures of the examples whose content is still what was embedded, by path."""
        wanted = [one.path for one in examples if one.path not in self._pictures]
        if self._source is not None and self._has_images and wanted:
            self._read(self._source, wanted)
        return {one.path: self._pictures[one.path] for one in examples if one.path in self._pictures}

    def _read(self, source: RunSource, paths: Sequence[str]) -> None:
        if len(self._pictures) > KEPT_EXAMPLES:
            self._pictures.clear()
        try:
            for path, content in source.contents(paths, {}):
                try:
                    self._pictures[path] = fitted(self._explainer.prepared(content)[0], EXAMPLE_SIDE)
                except ImageDecodeError:
                    continue
        except (DatasetError, RemoteError) as error:
            logger.warning("The nearest training images are named, but not shown. %s", error)
            self._has_images = False
