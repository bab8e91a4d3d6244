"""How embeddings are made: as asked, or in the way of those in a cache or behind a head."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hoarfrost.features.cache import Header
from hoarfrost.features.datasets import Dataset
from hoarfrost.features.decoding.views import HIGH, View, parse_views, shows_region, standard_view
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.encoder.drift import Drift
from hoarfrost.features.encoder.families import encoder_from, spelled
from hoarfrost.features.encoder.registry import PUBLISHED_WORDS, EncoderSpec
from hoarfrost.features.errors import EncoderError, FingerprintMismatchError, ViewError
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.extraction.regions import region_step
from hoarfrost.features.fingerprint import Fingerprint, preprocessing, weights_origin, window_asked_for
from hoarfrost.features.origins import REGION, require_own_encoder

if TYPE_CHECKING:
    from hoarfrost.features.encoder.backbone import Backbone, Weights
    from hoarfrost.features.encoder.backbone.compiling import Supply

HIGH_LAYERS = 2  # the last ones, of a new cache with the views "high"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How embeddings are made. Weights are loaded when an image needs them, or if their digest is not known otherwise."""

    header: Header
    weights_spec: str
    weights: "Weights | None"
    views: tuple[View, ...] = ()
    """The views to compute now; the header has all those of the cache."""

    @property
    def encoder(self) -> EncoderSpec:
        """The network that embeds."""
        return self.header.fingerprint.encoder

    @property
    def precision(self) -> str:
        """The precision of the forward pass."""
        return self.header.fingerprint.precision

    def backbone(
        self, device: str, batch_size: int, n_images: int, *, resumed: str | None, supply: "Supply | None" = None
    ) -> "Backbone":
        """Return the backbone, on the compute path that an interrupted extraction started with, or one that pays.

        `supply` is how fast images are read and decoded.

        Raise HoarfrostError if that is not possible here, or the header's weights are not available.
        """
        from hoarfrost.features.encoder.backbone import Backbone, choose_compute

        backbone = Backbone(
            self.checked_weights(), device=device, precision=self.precision, batch_size=batch_size,
            layers=self.header.fingerprint.layers,
        )  # fmt: skip
        n_looks = sum(view.n_looks for view in self.views)
        choose_compute(backbone, n_images * n_looks, resumed=resumed, supply=supply and supply.by_look(n_looks))
        return backbone

    def for_another_process(self) -> "Recipe":
        """Return the recipe without its weights, for a process that reads them from their file."""
        spec = self.weights_spec
        return replace(self, weights=None, weights_spec=spec if _is_name(spec) else os.path.abspath(spec))

    def checked_weights(self) -> "Weights":
        """Return the weights; refuse others of the same name."""
        from hoarfrost.features.encoder.backbone import load_weights

        weights, header = self.weights or load_weights(self.weights_spec, self.encoder), self.header
        made = replace(header.fingerprint, weights_sha256=weights.sha256)
        if differences := made.differences(header.fingerprint):
            raise FingerprintMismatchError(
                f"The weights {weights.name} are not those that made the existing embeddings ({header.weights}, "
                f"{header.weights_origin or 'of unknown origin'}). What differs: {'; '.join(differences)}. Pass the right "
                "ones with --weights, or extract and train again."
            )
        return weights


def _is_name(spec: str) -> bool:
    """Return whether weights are named, and not in a file of the user's."""
    return spec in PUBLISHED_WORDS or spec.startswith("random:")


def recipe_for(
    options: ExtractOptions, existing: Header | None, dataset: Dataset, choose_precision: Callable[[], str]
) -> Recipe:
    """Return how embeddings are made: as asked; where that is "auto", as those in the cache were.

    `choose_precision` returns what is fast where the embeddings will be computed; called if nothing else decides.
    """
    encoder, weights = encoder_from(options.encoder), None
    _refuse_other_encoder(encoder, existing)
    spec = _own_weights(encoder, options.weights)
    if spec == "auto" and existing is not None and _is_name(existing.weights):
        spec = existing.weights  # whether or not others can be downloaded today
        if spec not in PUBLISHED_WORDS:
            logger.warning("The cache was started with the untrained weights %s. Continuing with them.", spec)
    origin = weights_origin(spec, encoder)
    if existing is not None and origin and origin == existing.weights_origin:
        name, sha256 = existing.weights, existing.fingerprint.weights_sha256
    else:
        from hoarfrost.features.encoder.backbone import load_weights

        weights = load_weights(spec, encoder)
        name, sha256 = weights.name, weights.sha256
        spec = name if spec == "auto" else spec
        origin = weights_origin(spec, encoder)
    encoder.require_precision(options.precision)
    precision = _existing_precision(options.precision, existing)
    precision = precision or ("float32" if encoder.opened is not None else choose_precision())
    drift = None if existing is None else existing.drift
    if precision == "int8":
        if existing is not None:
            precision = "int8:"  # on a cache of another precision: the writer will refuse it, whatever the ranges are
        else:
            weights, precision, drift = _calibrated(encoder, weights, spec, dataset, options)
    steps = preprocessing(encoder, None if options.window is None else str(options.window))
    if options.region is not None:
        are_views = shows_regions(options, existing)
        steps = {**steps, REGION: region_step(options.region, options.margin, are_views=are_views)}
    path = os.path.abspath(spec) if origin.startswith("file ") else ""
    views, layers = _looks(options, encoder, existing)
    made_by = Fingerprint(encoder.name, sha256, steps, precision, layers)
    header = Header(made_by, encoder.dim_of(layers), name, origin, weights_path=path, drift=drift)
    names = [view.name for view in views]
    header = header.of_views(names) if existing is None else replace(header, views=existing.views).with_views(names)
    return Recipe(header, spec, weights, views)


def shows_regions(options: ExtractOptions, existing: Header | None) -> bool:
    """Return whether some of the views to compute show regions, and the others whole images.

    Raises
    ------
    ViewError
        If it is not stated where the regions are, or the cache has such views and none of them is named.
    """
    known = () if existing is None else existing.region_views
    asked = tuple(name for name in options.views.split(",") if shows_region(name)) if options.views else known
    if asked and options.region is None:
        raise ViewError(
            f"The view {asked[0].strip()} shows the region of each image. State where it is with --region box or --region "
            "mask, or name views without region."
        )
    if known and not asked:
        raise ViewError(
            f"--views {options.views}: the cache has views of whole images and of regions. Name one of a region too: --views "
            f"{options.views},{known[0]}"
        )
    return bool(asked)


def _refuse_other_encoder(encoder: EncoderSpec, existing: Header | None) -> None:
    """Raise FingerprintMismatchError if the cache holds embeddings of another encoder: its weights need not be read."""
    if existing is not None and (there := existing.fingerprint.backbone) != encoder.name:
        own = existing.fingerprint.encoder
        raise FingerprintMismatchError(
            "The cache holds embeddings of another encoder, so nothing was added. Differences: backbone: "
            f"{encoder.name} here, {there} there. Choose another --cache, or pass --encoder "
            f"{spelled(own, existing.weights_path)}."
        )


def _own_weights(encoder: EncoderSpec, spec: str) -> str:
    """Return which weights are asked for; those of an encoder that is a file are in it.

    Raises
    ------
    EncoderError
        If others are asked for.
    """
    if not encoder.file:
        return spec
    if spec != "auto" and spec not in PUBLISHED_WORDS:
        raise EncoderError(f"--weights {spec}: the weights of {encoder.title} are in its file. Leave --weights out.")
    return encoder.file


def _looks(
    options: ExtractOptions, encoder: EncoderSpec, existing: Header | None
) -> "tuple[tuple[View, ...], tuple[int, ...]]":
    """Return the views to compute, and the layers: as asked, or as in the cache."""
    own = standard_view(encoder).name
    views = parse_views(options.views or ",".join((own,) if existing is None else existing.view_names), encoder)
    if options.layers is not None:
        return views, encoder.checked_layers(options.layers)
    if existing is not None:
        return views, existing.fingerprint.layers
    is_high = HIGH in (name.strip() for name in options.views.split(",")) and encoder.is_pooled
    return views, encoder.checked_layers(stage.number for stage in encoder.stages[-HIGH_LAYERS:]) if is_high else ()


def recipe_like(header: Header, weights: str | None = None) -> "tuple[Recipe, Window | None]":
    """Return how to embed new images as others were, and the window of grey DICOM images.

    Parameters
    ----------
    header : Header
        How the others were embedded.
    weights : str, optional
        Where the weights are now.

    Raises
    ------
    EncoderError
        If this program does not know the encoder.
    FingerprintMismatchError
        If this program cannot embed in this way; the message says which part differs.
    """
    asked = header.fingerprint
    require_own_encoder(asked.backbone, asked.preprocessing)
    encoder, own = asked.encoder, window_asked_for(asked.preprocessing)
    mine = replace(asked, preprocessing=preprocessing(encoder, own))
    differences = mine.differences(asked)
    if (dim := encoder.dim_of(asked.layers)) != header.dim:
        differences.append(f"dimension: {dim} here, {header.dim} there")
    if differences:
        raise FingerprintMismatchError(
            "The head was trained on embeddings that this version of hoarfrost cannot make, so its predictions would mean "
            f"nothing. What differs: {'; '.join(differences)}. Extract and train again, or use the version that made it."
        )
    try:
        found = None if own is None else Window.parse(own)
    except ValueError as error:
        raise FingerprintMismatchError(f"The window that the head records is not valid: {error}.") from error
    views = parse_views(",".join(header.view_names), encoder)
    return Recipe(header, weights or header.weights_path or header.weights, None, views), found


def _existing_precision(asked: str, existing: Header | None) -> str | None:
    """Return the precision of the cache's embeddings, if that is what is asked for."""
    found = None if existing is None else existing.fingerprint.precision
    return (
        found if asked in {"auto", "fast", found} or (asked == "int8" and (found or "").startswith("int8:")) else None
    )


def _calibrated(
    encoder: EncoderSpec, weights: "Weights | None", spec: str, dataset: Dataset, options: ExtractOptions
) -> "tuple[Weights, str, Drift]":
    """Return the weights, the precision of 8-bit integers calibrated on the dataset's own images, and its drift."""
    from hoarfrost.features.decoding.images import Decoding
    from hoarfrost.features.encoder.backbone import load_weights
    from hoarfrost.features.encoder.backbone.int8 import calibrated, require_openvino
    from hoarfrost.features.extraction.loop import sample_images

    require_openvino()
    weights = weights or load_weights(spec, encoder)
    decoding = Decoding(options.max_pixels, options.window, size=encoder.size)
    precision, drift = calibrated(weights, sample_images(dataset, decoding))
    logger.info("8-bit integers: %s.", drift)
    return weights, precision, drift
