"""How embeddings are made: as asked, as those in a cache, or as others were."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hoarfrost.features.cache import Header
from hoarfrost.features.datasets import Dataset
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.encoder.registry import EncoderSpec, encoder_named
from hoarfrost.features.errors import FingerprintMismatchError
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.fingerprint import Fingerprint, preprocessing, weights_origin, window_asked_for

if TYPE_CHECKING:
    from hoarfrost.features.encoder.backbone import Backbone, Weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How embeddings are made. The weights are loaded when an image needs them, or when nothing else tells their digest."""

    header: Header
    weights_spec: str
    weights: "Weights | None"

    @property
    def encoder(self) -> EncoderSpec:
        """The network that embeds."""
        return self.header.fingerprint.encoder

    @property
    def precision(self) -> str:
        """What the forward pass computes in."""
        return self.header.fingerprint.precision

    def backbone(self, device: str, batch_size: int, n_images: int, *, resumed: str | None) -> "Backbone":
        """Return the backbone, on the compute path that an interrupted extraction started with.

        Raises
        ------
        WeightsError, FingerprintMismatchError
            If the weights cannot be had here, or are not those that were settled.
        HoarfrostError
            If the compute path is not possible here.
        """
        from hoarfrost.features.encoder.backbone import Backbone, choose_compute

        backbone = Backbone(self.checked_weights(), device=device, precision=self.precision, batch_size=batch_size)
        choose_compute(backbone, n_images, resumed=resumed)
        return backbone

    def for_another_process(self) -> "Recipe":
        """Return the recipe without its weights, for a process that reads them from their file."""
        is_name = self.weights_spec == "imagenet" or self.weights_spec.startswith("random:")
        return replace(
            self, weights=None, weights_spec=self.weights_spec if is_name else os.path.abspath(self.weights_spec)
        )

    def checked_weights(self) -> "Weights":
        """Load the weights; refuse others of the same name."""
        from hoarfrost.features.encoder.backbone import load_weights

        weights = self.weights or load_weights(self.weights_spec, self.encoder)
        _check_weights(weights, self.header)
        return weights


def recipe_for(
    options: ExtractOptions, existing: Header | None, dataset: Dataset, choose_precision: Callable[[], str]
) -> Recipe:
    """Return how embeddings are made: as asked; where that is "auto", as those in the cache were.

    `choose_precision` is asked for what is fast where the embeddings will be computed, if nothing else decides.
    """
    encoder, spec, weights = encoder_named(options.encoder), options.weights, None
    if (
        spec == "auto"
        and existing is not None
        and (existing.weights == "imagenet" or existing.weights.startswith("random:"))
    ):
        spec = existing.weights  # whatever the network says today
        if spec != "imagenet":
            logger.warning("the cache was begun with the untrained backbone %s; going on with it", spec)
    origin = weights_origin(spec, encoder)
    is_same = existing is not None and existing.fingerprint.backbone == encoder.name
    if existing is not None and is_same and origin and origin == existing.weights_origin:
        name, sha256 = existing.weights, existing.fingerprint.weights_sha256
    else:
        from hoarfrost.features.encoder.backbone import load_weights

        weights = load_weights(spec, encoder)
        name, sha256 = weights.name, weights.sha256
        spec = name if spec == "auto" else spec
        origin = weights_origin(spec, encoder)
    precision = _existing_precision(options.precision, existing) or choose_precision()
    if precision == "int8":
        if existing is not None:
            precision = "int8:"  # on a cache of another precision: the writer will refuse it, whatever the ranges are
        else:
            weights, precision = _calibrated(weights, spec, dataset, options)
    steps = preprocessing(encoder, None if options.window is None else str(options.window))
    path = os.path.abspath(spec) if origin.startswith("file ") else ""
    header = Header(Fingerprint(encoder.name, sha256, steps, precision), encoder.dim, name, origin, weights_path=path)
    return Recipe(header, spec, weights)


def recipe_like(header: Header, weights: str | None = None) -> "tuple[Recipe, Window | None]":
    """Return how new images are embedded as others were.

    Parameters
    ----------
    header : Header
        How the others were.
    weights : str, optional
        Where the weights are now.

    Returns
    -------
    Recipe
    Window or None
        What of grey DICOM images is shown.

    Raises
    ------
    EncoderError
        If this program does not know the encoder.
    FingerprintMismatchError
        If this program cannot embed so; it says which part differs.
    """
    asked = header.fingerprint
    encoder, own = asked.encoder, window_asked_for(asked.preprocessing)
    mine = replace(asked, preprocessing=preprocessing(encoder, own))
    differences = mine.differences(asked)
    if encoder.dim != header.dim:
        differences.append(f"dimension: {encoder.dim} here, {header.dim} there")
    if differences:
        raise FingerprintMismatchError(
            "The head was trained on embeddings that this hoarfrost does not make, so its predictions would mean nothing. "
            f"What differs: {'; '.join(differences)}. Extract and train again, or use the hoarfrost that they were made by."
        )
    try:
        found = None if own is None else Window.parse(own)
    except ValueError as error:
        raise FingerprintMismatchError(
            f"The head's embeddings were made with a window that is none: {error}."
        ) from error
    return Recipe(header, weights or header.weights_path or header.weights, None), found


def _check_weights(weights: "Weights", header: Header) -> None:
    """Refuse weights of the same name that are others."""
    made = replace(header.fingerprint, weights_sha256=weights.sha256)
    differences = made.differences(header.fingerprint)
    if differences:
        raise FingerprintMismatchError(
            f"The weights {weights.name} are not those that the other embeddings were made by ({header.weights}, "
            f"{header.weights_origin or 'of unknown origin'}). What differs: {'; '.join(differences)}. Give those with "
            "--weights, or extract and train again."
        )


def _existing_precision(asked: str, existing: Header | None) -> str | None:
    """Return the precision of the cache's embeddings, if that is what is asked for."""
    if existing is None:
        return None
    found = existing.fingerprint.precision
    return found if asked in {"auto", found} or (asked == "int8" and found.startswith("int8:")) else None


def _calibrated(
    weights: "Weights | None", spec: str, dataset: Dataset, options: ExtractOptions
) -> "tuple[Weights, str]":
    """Calibrate 8-bit integers on the dataset's own images."""
    from hoarfrost.features.decoding.images import Decoding
    from hoarfrost.features.encoder.backbone import load_weights
    from hoarfrost.features.encoder.backbone.int8 import calibrated_precision, require_openvino
    from hoarfrost.features.extraction.loop import sample_images

    encoder = encoder_named(options.encoder)
    encoder.require_int8()
    require_openvino()
    weights = weights or load_weights(spec, encoder)
    decoding = Decoding(options.max_pixels, options.window, size=encoder.size)
    return weights, calibrated_precision(weights, sample_images(dataset, decoding))
