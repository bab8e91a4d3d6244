"""The known encoders, one entry each: all that the rest of the program knows about a frozen network."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
class Stage:
    """A part of the network whose output is a map; its mean over the cells is an embedding, or some columns of one.

    Attributes
    ----------
    number : int
        As in `--layers 3,4`.
    layer : str
        The network's child whose output it is, (B, dim, cells, cells).
    dim : int
        How many numbers its mean has.
    cell_pixels : int
        From one cell to the next; cell (i, j) sees the image around pixel (i, j) times this.
    """

    number: int
    layer: str
    dim: int
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
        Height and width of its usual input, in pixels.
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
    stages : tuple of Stage
        In the order of the pass: the network's children run one after another, up to the last stage. The mean of the last
        stage's map is the embedding. Empty if an embedding is not a mean over cells; its predictions cannot be explained
        by maps then.
    size_step : int or None
        Height and width may be any multiple of this; None if they must be `size`.
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
    stages: tuple[Stage, ...] = ()
    size_step: int | None = None
    fast_paths: frozenset[FastPath] = frozenset()

    def stages_of(self, layers: Sequence[int]) -> tuple[Stage, ...]:
        """Return the stages whose means are an embedding: the last one if no layers are named.

        Raises
        ------
        EncoderError
            If the encoder does not have one of these layers.
        """
        if not layers:
            return self.stages[-1:]
        found = tuple(stage for stage in self.stages if stage.number in layers)
        unknown = sorted({*layers} - {stage.number for stage in found})
        if unknown:
            own = ", ".join(str(stage.number) for stage in self.stages) or "none to choose"
            raise EncoderError(f"--layers: the encoder {self.title} has no layer {unknown[0]}. Its layers: {own}.")
        return found

    def checked_layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Return the numbers of the layers, ascending; none for the last one alone, which is the encoder's own output."""
        stages = self.stages_of(tuple(layers))
        return () if stages == self.stages[-1:] else tuple(stage.number for stage in stages)

    def dim_of(self, layers: Sequence[int]) -> int:
        """Return the length of an embedding of these layers."""
        return sum(stage.dim for stage in self.stages_of(layers)) if layers else self.dim

    def columns_of(self, layers: Sequence[int]) -> "dict[int, slice]":
        """Return the columns of each layer in an embedding of these layers, by the layer's number."""
        stages = self.stages_of(layers)
        ends = list(accumulate(stage.dim for stage in stages))
        return {stage.number: slice(end - stage.dim, end) for stage, end in zip(stages, ends, strict=True)}

    def require_feature_map(self) -> Stage:
        """Return the last stage, whose map predictions are explained by; raise EncoderError if there is none."""
        if not self.stages:
            raise EncoderError(
                f"The encoder {self.title} does not have a feature map, so its predictions cannot be explained by maps. "
                "Predict without explanations, or extract and train with an encoder that has one."
            )
        return self.stages[-1]

    def require_int8(self) -> None:
        """Raise EncoderError if the encoder does not run in 8-bit integers."""
        if "int8" not in self.fast_paths:
            raise EncoderError(f"The encoder {self.title} does not run in int8. Pass --precision auto.")


def _resnet18() -> "nn.Module":
    from hoarfrost.features.encoder.resnet import ResNet

    return ResNet((2, 2, 2, 2))


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
    # Padding centres the first cell's receptive field on the first pixel, and each stride of 2 keeps it there.
    stages=tuple(Stage(number, f"layer{number}", 2 ** (5 + number), 2 ** (1 + number)) for number in (1, 2, 3, 4)),
    size_step=32,
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
