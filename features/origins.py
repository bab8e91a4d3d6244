"""Embeddings that no single encoder of this program made: made elsewhere and imported, or those of several encoders together.

They have no entry in the registry. All that is known of them is in the fingerprint: its `backbone` is "elsewhere:NAME" or
"several", and its `preprocessing` has one entry of that name.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from hoarfrost.features.encoder.families import recorded_encoder
from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.features.errors import EncoderError

if TYPE_CHECKING:
    from torch import nn

ELSEWHERE, SEVERAL = "elsewhere", "several"
REGION = "region"  # in the preprocessing of embeddings of regions
UNNAMED = "an unnamed encoder"
SUFFIX = " (embeddings made elsewhere)"  # of an encoder's title
NO_COLOURS = (0.0, 0.0, 0.0)


def elsewhere_name(encoder_name: str) -> str:
    """Return the `backbone` of a fingerprint of embeddings that an encoder made elsewhere."""
    return f"{ELSEWHERE}:{encoder_name}"


def elsewhere_steps(dim: int, pooling: str) -> dict[str, Any]:
    """Return the `preprocessing` of such a fingerprint; `pooling` is how several embeddings became one, or empty."""
    return {ELSEWHERE: {"dim": dim, "pooling": pooling or "none"}}


def is_elsewhere(backbone: str) -> bool:
    """Return whether embeddings were made elsewhere."""
    return backbone.startswith(f"{ELSEWHERE}:")


def encoder_of(backbone: str, preprocessing: Mapping[str, Any]) -> EncoderSpec:
    """Return the encoder that a fingerprint names; one that cannot embed, if it is none of this program's.

    Raises
    ------
    EncoderError
        If this version does not have the encoder.
    """
    if is_elsewhere(backbone):
        name = backbone.partition(":")[2] or UNNAMED
        return _without_network(backbone, f"{name}{SUFFIX}", int(preprocessing[ELSEWHERE]["dim"]))
    if backbone == SEVERAL:
        parts = preprocessing[SEVERAL]
        titles = [encoder_of(part["backbone"], part["preprocessing"]).title for part in parts]
        return _without_network(backbone, " and ".join(titles), sum(int(part["dim"]) for part in parts))
    return recorded_encoder(backbone, preprocessing)


def require_own_encoder(backbone: str, preprocessing: Mapping[str, Any]) -> None:
    """Refuse to embed images where no single encoder of this program can.

    Raises
    ------
    EncoderError
        With the way out: to predict from caches.
    """
    if is_elsewhere(backbone):
        name = backbone.partition(":")[2]
        told = f" --encoder-name {name!r}" if name else ""
        raise EncoderError(
            f"These embeddings were made elsewhere, by {name or UNNAMED}. This program does not have that encoder, so it "
            "cannot embed images as they were embedded. Embed new images where the others were embedded, import them with "
            f"`hoarfrost cache import FILE --dataset CSV --cache new.h5{told}`, and predict from that cache: "
            "`hoarfrost predict new.h5 --run RUN --output new.csv`."
        )
    if REGION in preprocessing:
        raise EncoderError(
            f"The head was trained on regions (each image was {preprocessing[REGION]}), and where they are in new images is "
            "not known here. Extract the new images with the same --region, --margin and --views into a cache, and predict "
            "from it: `hoarfrost predict new.h5 --run RUN --output new.csv`."
        )
    if backbone == SEVERAL:
        raise EncoderError(
            f"The head takes the embeddings of {encoder_of(backbone, preprocessing).title} together, and images are "
            "embedded by one encoder at a time. Extract the images into one cache for each encoder (or import them), and "
            "predict from these caches: `hoarfrost predict first.h5 second.h5 --run RUN --output new.csv`. `explain`, "
            "`export` and `serve` need a head on one encoder."
        )


def parts_of(preprocessing: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what a fingerprint of several encoders records of each: `fingerprint`, `backbone`, `dim` and others."""
    parts: Sequence[Mapping[str, Any]] = preprocessing.get(SEVERAL, ())
    return parts


def _without_network(name: str, title: str, dim: int) -> EncoderSpec:
    """Return an encoder of which there are embeddings only."""

    def build() -> "nn.Module":
        _refuse(title)

    return EncoderSpec(name, title, dim, 1, NO_COLOURS, NO_COLOURS, build, (), output="last layer")


def _refuse(title: str) -> NoReturn:
    raise EncoderError(f"{title}: there are embeddings only, and no network. Predict from a cache.")
