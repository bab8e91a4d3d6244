"""The known encoders, one entry each: all that the rest of the program knows about a frozen network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from hoarfrost.features.encoder.builders import (
    State,
    basic_resnet,
    convnext_tiny,
    densenet121,
    densenet_names,
    resnet_names,
    torchvisions,
    vit_map,
)
from hoarfrost.features.errors import EncoderError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

FastPath = Literal["folded", "winograd", "compiled", "int8"]
PUBLISHED_WORDS = ("imagenet", "pretrained")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that `--weights imagenet`, or `pretrained`, means.

    Attributes
    ----------
    title : str
        For prose: "ImageNet (torchvision, IMAGENET1K_V1)".
    origin : str
        See `hoarfrost.features.fingerprint.weights_origin`.
    url : str
        Of a checkpoint; the file name ends with a dash and the first digits of its SHA-256, as in torch's own URLs.
    megabytes : int
    word : str
        How a cache names them: "imagenet", or "pretrained" if they were trained on something else.
    find : callable, optional
        Returns their file in another library's cache, and raises WeightsError if it is not there; without it they are in
        torch's own, or downloaded to it.
    """

    title: str
    origin: str
    url: str
    megabytes: int
    word: str = "imagenet"
    find: "Callable[[], Path] | None" = None

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
        From one cell to the next; cell (i, j) sees the image around pixel (i, j) times this, plus `first_pixel`.
    first_pixel : float
        The pixel, down and across, that the first cell is centred on.
    """

    number: int
    layer: str
    dim: int
    cell_pixels: int
    first_pixel: float = 0


@dataclass(frozen=True)
class Network:
    """What a fingerprint records of an encoder that is not an entry, so that it is known without its library or file.

    Attributes
    ----------
    dim : int
    output : str
        The part of the network whose output is the embedding, for prose.
    layer : int
        The number of its stage; 0 if it has no map.
    map_dim : int
        The number of channels of the map.
    cell_pixels : int
        Of the map.
    is_pooled : bool
        Whether the mean of the map is the embedding.
    size_step : int or None
        See `EncoderSpec`.
    batch : int
        The batch size that is fixed in a program of torch; 0 for any.
    options : mapping of str to str
        Further options of a file: channels, output.
    """

    dim: int
    output: str = "own output"
    layer: int = 0
    map_dim: int = 0
    cell_pixels: int = 0
    is_pooled: bool = True
    size_step: int | None = None
    batch: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The only stage, if there is a map. Its cells are taken for patches, each centred in its own square."""
        if not self.layer:
            return ()
        return (Stage(self.layer, "", self.map_dim, self.cell_pixels, (self.cell_pixels - 1) / 2),)


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
    is_pooled : bool
        Whether the mean of the last stage's map is the embedding. If not, as with a class token, the stage must be named to
        be embedded, and predictions are explained only then.
    last_map : callable, optional
        Computes the map of the only stage from the network and its input, where running its children would not.
    renamed : callable, optional
        Returns the tensors of a checkpoint by the network's own names.
    opened : callable, optional
        Returns the network from the content of its file, where a file is the network: its weights are the file's bytes.
    file : str
        Where that file is, see `network_files`; empty if only a cache, a run or a head knows.
    network : Network or None
        What a fingerprint records of an encoder that is not an entry.
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
    is_pooled: bool = True
    last_map: "Callable[[nn.Module, Tensor], Tensor] | None" = None
    renamed: "Callable[[State], State] | None" = None
    opened: "Callable[[Mapping[str, Tensor]], nn.Module] | None" = None
    file: str = ""
    network: "Network | None" = None
    fast_paths: frozenset[FastPath] = frozenset()

    def stages_of(self, layers: Sequence[int]) -> tuple[Stage, ...]:
        """Return the stages whose means are an embedding: the last one, if it is one, where no layers are named.

        Raises
        ------
        EncoderError
            If the encoder does not have one of these layers.
        """
        if not layers:
            return self.stages[-1:] if self.is_pooled else ()
        found = tuple(stage for stage in self.stages if stage.number in layers)
        unknown = sorted({*layers} - {stage.number for stage in found})
        if unknown:
            own = ", ".join(str(stage.number) for stage in self.stages) or "none to choose"
            raise EncoderError(f"--layers: the encoder {self.title} has no layer {unknown[0]}. Its layers: {own}.")
        return found

    def checked_layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Return the numbers of the layers, ascending; none for the last one alone, which is the encoder's own output."""
        stages = self.stages_of(tuple(layers))
        return () if stages == self.stages_of(()) else tuple(stage.number for stage in stages)

    def dim_of(self, layers: Sequence[int]) -> int:
        """Return the length of an embedding of these layers."""
        return sum(stage.dim for stage in self.stages_of(layers)) if layers else self.dim

    def columns_of(self, layers: Sequence[int]) -> "dict[int, slice]":
        """Return the columns of each layer in an embedding of these layers, by the layer's number."""
        stages = self.stages_of(layers)
        ends = list(accumulate(stage.dim for stage in stages))
        return {stage.number: slice(end - stage.dim, end) for stage, end in zip(stages, ends, strict=True)}

    def require_feature_map(self, layers: Sequence[int] | None = None) -> Stage:
        """Return the last stage, of an embedding of some layers if they are given; raise EncoderError if there is none."""
        stages = self.stages if layers is None else self.stages_of(layers)
        if not stages and self.stages:
            raise EncoderError(
                f"An embedding of the encoder {self.title} is its {self.output}, not the mean of a map, so predictions from "
                f"it cannot be explained by maps. With `hoarfrost extract --layers {self.stages[-1].number}` and a new "
                "cache, embeddings are means over a map, and can be explained."
            )
        if not stages:
            raise EncoderError(
                f"The encoder {self.title} does not have a feature map, so its predictions cannot be explained by maps. "
                "Predict without explanations, or extract and train with an encoder that has one."
            )
        return stages[-1]

    def require_precision(self, precision: str) -> None:
        """Raise EncoderError if the encoder does not run in a precision, such as "int8:1,2"."""
        kind = precision.partition(":")[0]
        if kind == "fast" and "int8" not in self.fast_paths:
            raise EncoderError(f"--fast: the encoder {self.title} does not run in 8-bit integers. Leave --fast out.")
        if (kind == "int8" and "int8" not in self.fast_paths) or (kind == "bfloat16" and self.opened is not None):
            raise EncoderError(f"The encoder {self.title} does not run in {kind}. Pass --precision auto.")

    def require_one_file(self) -> None:
        """Raise EncoderError if the encoder cannot become part of an exported model."""
        if self.name.startswith("onnx:") or (self.network is not None and self.network.batch):
            what = "runs in ONNX Runtime" if self.name.startswith("onnx:") else "takes a fixed number of images at once"
            raise EncoderError(
                f"The encoder {self.title} {what}, so it cannot be exported with the head in one file. Use "
                "`hoarfrost predict` or `hoarfrost serve` with the run."
            )


def _published(weights: str, file_name: str, megabytes: int) -> PublishedWeights:
    """Return torchvision's weights of a name such as "ResNet18_Weights.IMAGENET1K_V1"."""
    title = f"ImageNet (torchvision, {weights.rpartition('.')[2]})"
    return PublishedWeights(
        title, f"torchvision {weights}", f"https://download.pytorch.org/models/{file_name}", megabytes
    )


def _resnet(name: str, title: str, build: "Callable[[], nn.Module]", published: PublishedWeights, width: int = 1,
            fast_paths: Sequence[FastPath] = ("folded", "winograd", "compiled")) -> EncoderSpec:  # fmt: skip
    """Return the entry of a ResNet, whose stages have `width` times the channels of ResNet18's."""
    return EncoderSpec(
        name=name,
        title=title,
        dim=512 * width,
        size=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        build=build,
        published=published,
        # Padding centres the first cell's receptive field on the first pixel, and each stride of 2 keeps it there.
        stages=tuple(Stage(n, f"layer{n}", width * 2 ** (5 + n), 2 ** (1 + n)) for n in (1, 2, 3, 4)),
        size_step=32,
        renamed=resnet_names,
        fast_paths=frozenset(fast_paths),
    )


def _bottleneck_resnet(n_layers: int, digits: str, megabytes: int) -> EncoderSpec:
    name, title = f"resnet{n_layers}", f"ResNet{n_layers}"
    published = _published(f"{title}_Weights.IMAGENET1K_V2", f"{name}-{digits}.pth", megabytes)
    return _resnet(name, title, partial(torchvisions, name, "fc"), published, width=4)


RESNET18 = _resnet(
    "resnet18",
    "ResNet18",
    partial(basic_resnet, 2, 2, 2, 2),
    _published("ResNet18_Weights.IMAGENET1K_V1", "resnet18-f37072fd.pth", 45),
    fast_paths=("folded", "winograd", "compiled", "int8"),
)
RESNET34 = _resnet(
    "resnet34",
    "ResNet34",
    partial(basic_resnet, 3, 4, 6, 3),
    _published("ResNet34_Weights.IMAGENET1K_V1", "resnet34-b627a593.pth", 83),
    fast_paths=("folded", "winograd", "compiled", "int8"),
)
# BatchNorm comes before each convolution, so that it is not folded. Pooling without padding moves the cells' centres.
DENSENET121 = EncoderSpec(
    name="densenet121",
    title="DenseNet121",
    dim=1024,
    size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=densenet121,
    published=_published("DenseNet121_Weights.IMAGENET1K_V1", "densenet121-a639ec97.pth", 31),
    stages=(
        Stage(1, "denseblock1", 256, 4),
        Stage(2, "denseblock2", 512, 8, 2),
        Stage(3, "denseblock3", 1024, 16, 6),
        Stage(4, "relu5", 1024, 32, 14),
    ),
    size_step=32,
    renamed=densenet_names,
)
# Its embedding is the mean of the last map: the LayerNorm behind it is part of torchvision's classifier.
CONVNEXT_TINY = EncoderSpec(
    name="convnext_tiny",
    title="ConvNeXt-Tiny",
    dim=768,
    size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=convnext_tiny,
    published=_published("ConvNeXt_Tiny_Weights.IMAGENET1K_V1", "convnext_tiny-983f1562.pth", 109),
    # The cells are patches: each is centred in its own square.
    stages=tuple(Stage(n, str(2 * n - 1), 48 * 2**n, 2 ** (1 + n), 2**n - 0.5) for n in (1, 2, 3, 4)),
    size_step=32,
)
VIT_B_16 = EncoderSpec(
    name="vit_b_16",
    title="ViT-B/16",
    dim=768,
    size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=partial(torchvisions, "vit_b_16", "heads"),
    published=_published("ViT_B_16_Weights.IMAGENET1K_V1", "vit_b_16-c867db91.pth", 330),
    output="class token",
    stages=(Stage(12, "encoder", 768, 16, 7.5),),
    is_pooled=False,
    last_map=vit_map,
)
SWIN_T = EncoderSpec(
    name="swin_t",
    title="Swin-T",
    dim=768,
    size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=partial(torchvisions, "swin_t", "head"),
    published=_published("Swin_T_Weights.IMAGENET1K_V1", "swin_t-704ceda3.pth", 108),
    stages=(Stage(4, "permute", 768, 32, 15.5),),
    size_step=32,
)


def network_files(text: str) -> list[str]:
    """Return the files of a network: its own, and that of its preprocessing if "FILE,preprocess=FILE" names one."""
    return text.split(",preprocess=")


_ENTRIES = (
    RESNET18,
    RESNET34,
    _bottleneck_resnet(50, "11ad3fa6", 98),
    _bottleneck_resnet(101, "cd907fc2", 171),
    _bottleneck_resnet(152, "f82ba261", 230),
    DENSENET121,
    CONVNEXT_TINY,
    VIT_B_16,
    SWIN_T,
)
ENCODERS = {spec.name: spec for spec in _ENTRIES}
DEFAULT = RESNET18


def unknown_encoder(name: str, what: str) -> EncoderError:
    """Return the error for a name that this version does not have, with the closest one that it has."""
    close = get_close_matches(name.lower(), ENCODERS, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return EncoderError(
        f"This version of hoarfrost does not have the encoder {name!r}.{meant} It has: {', '.join(ENCODERS)}; any model of "
        f"timm as timm:NAME; and files as torch:FILE.pt2 and onnx:FILE.onnx. {what}"
    )
