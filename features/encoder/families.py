"""An encoder by what a user writes, or by what a fingerprint recorded: an entry, a model of timm, a file. Loads no torch."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hoarfrost.features.encoder.asked import FAMILIES, TIMM, Found, asked_for
from hoarfrost.features.encoder.builders import State
from hoarfrost.features.encoder.registry import (
    ENCODERS,
    EncoderSpec,
    Network,
    PublishedWeights,
    unknown_encoder,
)
from hoarfrost.features.errors import EncoderError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

_LIBRARIES = {"timm": "timm", "torch": "exported program", "onnx": "ONNX"}


def encoder_from(text: str) -> EncoderSpec:
    """Return the encoder that a user names; of timm's and of files, what is needed of them is found by running them once.

    Parameters
    ----------
    text : str
        See `hoarfrost.features.encoder.asked.GRAMMAR`.

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
        from hoarfrost.features.encoder.timm_models import find_model  # here: it loads torch

        return _described(find_model(asked))
    from hoarfrost.features.encoder.graphs import find_graph

    return _described(find_graph(asked))


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
    family = next((prefix for prefix in FAMILIES if name.startswith(prefix)), "")
    if not family or "network" not in preprocessing:
        raise unknown_encoder(name, "Upgrade hoarfrost, or extract and train with one of these.")
    try:
        network = Network(**preprocessing["network"])
        (red, green, blue), (of_red, of_green, of_blue) = (map(float, preprocessing[each]) for each in ("mean", "std"))
        mean, std = (red, green, blue), (of_red, of_green, of_blue)
        return _described(Found(name, int(preprocessing["resize"][0]), mean, std, network))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EncoderError(f"What is recorded of the encoder {name} is damaged ({error}). Extract again.") from error


def _described(found: Found) -> EncoderSpec:
    """Return an encoder that is not an entry; its library or file is read when it works."""
    network, (family, _, source) = found.network, found.name.partition(":")
    common = EncoderSpec(
        name=found.name, title=f"{source} ({_LIBRARIES[family]})", dim=network.dim, size=found.size,
        mean=found.mean, std=found.std, build=partial(_no_random_weights, source), output=network.output,
        stages=network.stages, size_step=network.size_step, is_pooled=network.is_pooled, network=network,
    )  # fmt: skip
    if family == "timm":
        tag = source.partition(".")[2]
        return replace(
            common,
            build=partial(_build_timm, source, found.size),
            libraries=("torch", "timm"),
            published=PublishedWeights(
                f"{tag or 'its usual data'} (timm)", f"timm {source}", "", 0, "pretrained", partial(_timm_file, source)
            ),
            last_map=_timm_map,
            renamed=partial(_timm_names, source, found.size),
        )
    return replace(common, opened=partial(_open_graph, family, network), last_map=_graph_map, file=found.file)


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
