"""How embeddings are made: settled once for an extraction, and taken along to wherever they are computed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from features.cache import Header
from features.datasets import Dataset
from features.errors import WeightsError
from features.fingerprint import Fingerprint, preprocessing, weights_origin
from features.plan import ExtractOptions

if TYPE_CHECKING:
    from features.backbone import Backbone, Weights

ARCHITECTURE = "resnet18"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How embeddings are made. The weights are loaded when an image needs them, or when nothing else tells their digest."""

    header: Header
    weights_spec: str
    weights: "Weights | None"

    @property
    def precision(self) -> str:
        """What the forward pass computes in."""
        return self.header.fingerprint.precision

    def backbone(self, device: str, batch_size: int, n_images: int, *, resumed: str | None) -> "Backbone":
        """Make the backbone, on the compute path that an interrupted extraction began with.

        Raises
        ------
        WeightsError
            If the weights cannot be had here, or are not those that were settled.
        HoarfrostError
            If the compute path is not possible here.
        """
        from features.backbone import Backbone, load_weights, settle_compute

        weights = self.weights or load_weights(self.weights_spec)
        wanted = self.header.fingerprint.weights_sha256
        if self.weights is None and (found := weights.sha256) != wanted:
            raise WeightsError(
                f"--weights {self.weights_spec}: other weights than the extraction began with (SHA-256 {found[:12]}… here, "
                f"{wanted[:12]}… there). Let the path lead to the same file on every host, and the versions of torch agree."
            )
        backbone = Backbone(weights, device=device, precision=self.precision, batch_size=batch_size)
        settle_compute(backbone, n_images, resumed=resumed)
        return backbone

    def to_go(self) -> "Recipe":
        """Give what another process needs of it: that reads the weights where they lie."""
        path = Path(self.weights_spec)
        is_name = self.weights_spec == "imagenet" or self.weights_spec.startswith("random:")
        return replace(self, weights=None, weights_spec=self.weights_spec if is_name else str(path.absolute()))


def settle_recipe(
    options: ExtractOptions, begun: Header | None, dataset: Dataset, choose_precision: Callable[[ExtractOptions], str]
) -> Recipe:
    """Settle how embeddings are made: as asked; where "auto" leaves it open, as the cache was begun.

    `choose_precision` is asked for what is fast where the embeddings will be computed, if nothing else decides.
    """
    spec, weights = options.weights, None
    if spec == "auto" and begun is not None and (begun.weights == "imagenet" or begun.weights.startswith("random:")):
        spec = begun.weights  # whatever the network says today
        if spec != "imagenet":
            logger.warning("the cache was begun with the untrained backbone %s; going on with it", spec)
    origin = weights_origin(spec)
    if begun is not None and origin and origin == begun.weights_origin:
        name, sha256 = begun.weights, begun.fingerprint.weights_sha256
    else:
        from features.backbone import load_weights

        weights = load_weights(spec)
        name, sha256 = weights.name, weights.sha256
        spec = name if spec == "auto" else spec
        origin = weights_origin(spec)
    precision = _begun_precision(options.precision, begun) or choose_precision(options)
    if precision == "int8":
        if begun is not None:
            precision = "int8:"  # on a cache of another precision: the writer will refuse it, whatever the ranges are
        else:
            weights, precision = _calibrated(weights, spec, dataset, options)
    steps = preprocessing(None if options.window is None else str(options.window))
    return Recipe(Header(Fingerprint(ARCHITECTURE, sha256, steps, precision), name, origin), spec, weights)


def _begun_precision(asked: str, begun: Header | None) -> str | None:
    """Give the precision that the cache was begun with, if that is what is asked for."""
    if begun is None:
        return None
    found = begun.fingerprint.precision
    return found if asked in {"auto", found} or (asked == "int8" and found.startswith("int8:")) else None


def _calibrated(
    weights: "Weights | None", spec: str, dataset: Dataset, options: ExtractOptions
) -> "tuple[Weights, str]":
    """Calibrate 8-bit integers on the data set's own images."""
    from features.backbone import load_weights
    from features.backbone.int8 import calibrated_precision, require_openvino
    from features.images import Decoding
    from features.loop import sample_images

    require_openvino()
    weights = weights or load_weights(spec)
    return weights, calibrated_precision(weights, sample_images(dataset, Decoding(options.max_pixels, options.window)))
