"""An encoder by what a user writes, or by what a fingerprint recorded: an entry, a model of timm, a file. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hoarfrost.features.encoder.registry import (
    ENCODERS,
    EncoderSpec,
    Network,
    PublishedWeights,
    State,
    unknown_encoder,
)
from hoarfrost.features.errors import EncoderError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

TIMM, TORCH, ONNX = "timm:", "torch:", "onnx:"
GRAMMAR = (
    "NAME, timm:NAME[,size=PIXELS], torch:FILE.pt2 or onnx:FILE.onnx with any of "
    ",preprocess=FILE.onnx ,size=PIXELS ,scale=1|255 ,mean=M/M/M ,std=S/S/S ,channels=rgb|bgr ,output=NAME"
)
_LIBRARIES = {"timm": "timm", "torch": "exported program", "onnx": "ONNX"}
_OPTIONS = {
    TIMM: ("size",),
    TORCH: ("size", "scale", "mean", "std", "channels"),
    ONNX: ("preprocess", "size", "scale", "mean", "std", "channels", "output"),
}


@dataclass(frozen=True)
class Asked:
    """What a user wrote of an encoder that is not an entry: "onnx:net.onnx,scale=255" in parts.

    `source` is the model's name or the file; `options` are those after it.
    """

    text: str
    family: str
    source: str
    options: Mapping[str, str] = field(default_factory=dict)

    def refused(self, reason: str) -> EncoderError:
        """Return the error for a part that is wrong."""
        return EncoderError(f"--encoder {self.text}: {reason}. Write {GRAMMAR}.")

    @property
    def size(self) -> int | None:
        """The height and width of the input, in pixels."""
        text = self.options.get("size")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and 8 <= int(text) <= 4096):
            raise self.refused(f"size={text} is not a size in pixels from 8 to 4096")
        return int(text)

    def colours(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the three numbers of an option such as mean=0.5/0.5/0.5; one number is for all three."""
        text = self.options.get(name)
        if text is None:
            return default
        try:
            values = tuple(float(part) for part in text.split("/"))
        except ValueError as error:
            raise self.refused(f"{name}={text} is not a list of numbers such as 0.485/0.456/0.406") from error
        values = values * 3 if len(values) == 1 else values
        if len(values) != 3 or not all(abs(value) < 1e6 for value in values):
            raise self.refused(f"{name}={text} is not three numbers, or one for all colours")
        return values[0], values[1], values[2]

    def choice(self, name: str, *choices: str) -> str:
        """Return an option that is one of some words; the first is the default."""
        found = self.options.get(name, choices[0])
        if found not in choices:
            raise self.refused(f"{name}={found} is not one of {', '.join(choices)}")
        return found


def asked_for(text: str) -> Asked | None:
    """Read what a user wrote of an encoder; None if it is the name of an entry, or of none.

    Raises
    ------
    EncoderError
        If an option is not one of its family's.
    """
    family = next((prefix for prefix in _OPTIONS if text.startswith(prefix)), "")
    if not family:
        return None
    source, *parts = text.removeprefix(family).split(",")
    asked = Asked(text, family, source, dict(part.partition("=")[::2] for part in parts))
    if not source:
        raise asked.refused("the name is missing")
    if unknown := sorted(asked.options.keys() - set(_OPTIONS[family])):
        raise asked.refused(f"{unknown[0]!r} is not an option of {family}, which has {', '.join(_OPTIONS[family])}")
    return asked


def encoder_from(text: str) -> EncoderSpec:
    """Return the encoder that a user names; of timm's and of files, what is needed of them is found by running them once.

    Parameters
    ----------
    text : str
        See `GRAMMAR`.

    Raises
    ------
    EncoderError
        If there is no such encoder, a library is missing, or a file cannot be used.
    """
    if text in ENCODERS:
        return ENCODERS[text]
    asked = asked_for(text)
    if asked is None:
        raise unknown_encoder(text, "Pass one of these with --encoder.")
    if asked.family == TIMM:
        from hoarfrost.features.encoder.timm_models import timm_encoder  # here: it loads torch

        return timm_encoder(asked)
    from hoarfrost.features.encoder.graphs import graph_encoder

    return graph_encoder(asked)


def spelled(encoder: EncoderSpec, file: str) -> str:
    """Return what a user writes to get an encoder again that a cache describes; `file` is where its network was."""
    family, _, source = encoder.name.partition(":")
    if encoder.network is None:
        return encoder.name
    if encoder.opened is None:
        return f"{encoder.name},size={encoder.size}"
    of_colours = (encoder.mean, encoder.std)
    if encoder.network.options.get("channels") == "bgr":
        of_colours = (encoder.mean[::-1], encoder.std[::-1])
    mean, std = ("/".join(repr(value) for value in values) for values in of_colours)
    options = [f"{name}={value}" for name, value in encoder.network.options.items()]
    return ",".join(
        [f"{family}:{file or source}", f"size={encoder.size}", "scale=1", f"mean={mean}", f"std={std}", *options]
    )


def recorded_encoder(name: str, preprocessing: Mapping[str, Any]) -> EncoderSpec:
    """Return the encoder of a fingerprint: its entry, or what the fingerprint recorded of it.

    Raises
    ------
    EncoderError
        If this version does not have it.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    family = next((prefix for prefix in _OPTIONS if name.startswith(prefix)), "")
    if not family or "network" not in preprocessing:
        raise unknown_encoder(name, "Upgrade hoarfrost, or extract and train with one of these.")
    try:
        network = Network(**preprocessing["network"])
        mean, std = (tuple(float(value) for value in preprocessing[each]) for each in ("mean", "std"))
        return described(name, int(preprocessing["resize"][0]), mean, std, network)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EncoderError(f"What is recorded of the encoder {name} is damaged ({error}). Extract again.") from error


def described(
    name: str,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    network: Network,
    file: str = "",
) -> EncoderSpec:
    """Return an encoder that is not an entry; its library or file is read when it works.

    Parameters
    ----------
    name : str
        As in fingerprints: "timm:resnet50", "onnx:net.onnx".
    size, mean, std
        See `EncoderSpec`.
    network : Network
    file : str
        Where it is, if it is a file.
    """
    family, _, source = name.partition(":")
    common = EncoderSpec(
        name=name, title=f"{source} ({_LIBRARIES[family]})", dim=network.dim, size=size, mean=mean, std=std,
        build=partial(_no_random_weights, source), output=network.output, stages=network.stages,
        size_step=network.size_step, is_pooled=network.is_pooled, network=network,
    )  # fmt: skip
    if family == "timm":
        tag = source.partition(".")[2]
        return replace(
            common,
            build=partial(_build_timm, source, size),
            libraries=("torch", "timm"),
            published=PublishedWeights(
                f"{tag or 'its usual data'} (timm)", f"timm {source}", "", 0, "pretrained", partial(_timm_file, source)
            ),
            last_map=_timm_map,
            renamed=partial(_timm_names, source, size),
        )
    return replace(common, opened=partial(_open_graph, family, network), last_map=_graph_map, file=file)


def _no_random_weights(source: str) -> "nn.Module":
    raise EncoderError(f"The weights of {source} are in its file. Leave --weights out.")


# Each loads torch and its library only when it is called.


def _build_timm(name: str, size: int) -> "nn.Module":
    from hoarfrost.features.encoder.timm_models import build

    return build(name, size)


def _timm_file(name: str) -> "Path":
    from hoarfrost.features.encoder.timm_models import cached_file

    return cached_file(name)


def _timm_map(network: "nn.Module", x: "Tensor") -> "Tensor":
    from hoarfrost.features.encoder.timm_models import feature_map

    return feature_map(network, x)


def _timm_names(name: str, size: int, state: State) -> State:
    from hoarfrost.features.encoder.timm_models import own_names

    return own_names(name, size, state)


def _open_graph(family: str, network: Network, content: "Mapping[str, Tensor]") -> "nn.Module":
    from hoarfrost.features.encoder.graphs import open_graph

    return open_graph(family, network, content)


def _graph_map(network: "nn.Module", x: "Tensor") -> "Tensor":
    found: Tensor = network.raw(x)  # type: ignore[operator]
    return found
