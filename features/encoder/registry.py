"""The known encoders, one entry each: all that the rest of the program knows about a frozen network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hoarfrost.features.errors import EncoderError

if TYPE_CHECKING:
    from torch import nn

FastPath = Literal["folded", "winograd", "compiled", "int8"]


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that `--weights imagenet` means.

    Attributes
    ----------
    title : str
        For prose: "ImageNet (torchvision, IMAGENET1K_V1)".
    origin : str
        See `hoarfrost.features.fingerprint.weights_origin`.
    url : str
        Of a checkpoint; the file name ends with a dash and the first digits of its SHA-256, as in torch's own URLs.
    megabytes : int
    """

    title: str
    origin: str
    url: str
    megabytes: int

    @property
    def file_name(self) -> str:
        """The checkpoint's name in torch's cache."""
        return self.url.rpartition("/")[2]

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the file's SHA-256."""
        return self.file_name.partition(".")[0].rpartition("-")[2]


@dataclass(frozen=True)
class FeatureMap:
    """The map whose mean over the cells is the embedding.

    Attributes
    ----------
    layer : str
        The module of the network whose output it is, (B, D, cells, cells).
    cells : int
        Along each side.
    cell_pixels : int
        From one cell to the next; cell (i, j) sees the image around pixel (i, j) times this.
    """

    layer: str
    cells: int
    cell_pixels: int


@dataclass(frozen=True)
class EncoderSpec:
    """A frozen network that computes embeddings.

    Attributes
    ----------
    name : str
        In fingerprints, caches and heads.
    title : str
        In prose.
    dim : int
        Length of an embedding.
    size : int
        Height and width of its input, in pixels.
    mean, std : tuple of three floats
        Of red, green and blue, each from 0 to 1: the input's normalisation.
    build : callable
        Returns the network without its classifier, from normalised images (B, 3, size, size) to embeddings (B, dim), with
        weights from torch's random state. It imports what it needs, so that an entry loads no torch.
    libraries : tuple of str
        The packages whose versions decide the values of random weights.
    published : PublishedWeights or None
    output : str
        The part of the network whose output is the embedding, for prose.
    feature_map : FeatureMap or None
        None if an embedding is not a mean over cells; its predictions cannot be explained then.
    fast_paths : frozenset of FastPath
        "folded": each BatchNorm2d follows the Conv2d that is registered before it, and becomes part of it.
        "winograd": wide 3 x 3 convolutions by Winograd's method in float32 on a CPU; needs "folded".
        "compiled": by torch.compile if that pays. "int8": by OpenVINO, for ResNets of basic blocks.
    """

    name: str
    title: str
    dim: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    build: "Callable[[], nn.Module]"
    libraries: tuple[str, ...] = ("torch", "torchvision")
    published: PublishedWeights | None = None
    output: str = "global average pooling"
    feature_map: FeatureMap | None = None
    fast_paths: frozenset[FastPath] = frozenset()

    def require_feature_map(self) -> FeatureMap:
        """Return the feature map; raise EncoderError if there is none."""
        if self.feature_map is None:
            raise EncoderError(
                f"The encoder {self.title} does not have a feature map, so its predictions cannot be explained by maps. "
                "Predict without explanations, or extract and train with an encoder that has one."
            )
        return self.feature_map

    def require_int8(self) -> None:
        """Raise EncoderError if the encoder does not run in 8-bit integers."""
        if "int8" not in self.fast_paths:
            raise EncoderError(f"The encoder {self.title} does not run in int8. Pass --precision auto.")


def _resnet18() -> "nn.Module":
    from torch import nn
    from torchvision.models import resnet18

    network: nn.Module = resnet18(weights=None)
    network.fc = nn.Identity()
    return network


RESNET18 = EncoderSpec(
    name="resnet18",
    title="ResNet18",
    dim=512,
    size=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    build=_resnet18,
    published=PublishedWeights(
        title="ImageNet (torchvision, IMAGENET1K_V1)",
        origin="torchvision ResNet18_Weights.IMAGENET1K_V1",
        url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
        megabytes=45,
    ),
    # Padding centres the first cell's receptive field on the first pixel, and each of five strides of 2 keeps it there.
    feature_map=FeatureMap(layer="layer4", cells=7, cell_pixels=2**5),
    fast_paths=frozenset({"folded", "winograd", "compiled", "int8"}),
)

ENCODERS = {spec.name: spec for spec in (RESNET18,)}
DEFAULT = RESNET18


def encoder_named(name: str) -> EncoderSpec:
    """Return an encoder by its name; raise EncoderError, with the known names, if this version does not have it."""
    if name not in ENCODERS:
        raise EncoderError(
            f"This version of hoarfrost does not have the encoder {name!r}. It has: {', '.join(ENCODERS)}. Upgrade "
            "hoarfrost, or extract and train with one of these."
        )
    return ENCODERS[name]
