"""Models of timm as encoders: their facts, weights by timm's own names, feature maps. The sole user of timm."""

import importlib.util
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hoarfrost.features.encoder.asked import Asked, Found
from hoarfrost.features.encoder.builders import State, token_map
from hoarfrost.features.encoder.registry import Network
from hoarfrost.features.errors import EncoderError, WeightsError

_FILES = ("model.safetensors", "pytorch_model.bin")  # of a model in the cache of Hugging Face's hub


def find_model(asked: Asked) -> Found:
    """Return what a model of timm is as an encoder. One image is run through it, with random weights.

    Raises
    ------
    EncoderError
        If timm is missing, has no such model, or it does not return an embedding.
    """
    config = _configuration(asked.source)
    size = asked.size or int(config["input_size"][-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(asked.source, size)
        _perturb(network)
        try:
            facts = _facts(network, size, is_fixed=bool(config.get("fixed_input_size")))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise asked.refused(f"it does not take images of {size} x {size} pixels ({reason})") from error
    if facts is None:
        raise asked.refused("it returns no embedding: not one row of numbers per image")
    return Found(f"timm:{asked.source}", size, tuple(config["mean"]), tuple(config["std"]), facts)


def _require_timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        raise EncoderError("An encoder timm:NAME needs timm. Run pip install 'hoarfrost[timm]'.")
    import timm

    return timm


def _configuration(name: str) -> Mapping[str, Any]:
    """Return what timm knows of a model: input_size, mean, std, where its weights are."""
    timm = _require_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        raise EncoderError(f"timm does not have the model {architecture!r}.{meant} All: timm.list_models().")
    try:
        return dict(timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict())
    except RuntimeError as error:
        tags = ", ".join(each.partition(".")[2] for each in timm.list_models(f"{architecture}.*", pretrained=True))
        raise EncoderError(
            f"timm's model {architecture} has no weights of the name {tag!r}. It has: {tags or 'none'}."
        ) from error


def build(name: str, size: int) -> nn.Module:
    """Return a model without its classifier, for images of a size."""
    timm, config = _require_timm(), _configuration(name)
    resized = {} if size == config["input_size"][-1] or not config.get("fixed_input_size") else {"img_size": size}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **resized)
    except (TypeError, AssertionError, RuntimeError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise EncoderError(f"timm's model {name} cannot be made for {size} x {size} pixels: {reason}.") from error
    # New networks begin with residual branches scaled by 1e-5: frozen so, they would hardly see the image.
    for each, values in network.named_parameters():
        if each.rpartition(".")[2].startswith("gamma"):
            nn.init.ones_(values)
    return network


def _perturb(network: nn.Module) -> None:
    """Change scales and shifts from one and zero: a normalisation behind the map would do nothing otherwise."""
    for name, values in (*network.named_parameters(), *network.named_buffers()):
        if values.ndim == 1 and values.is_floating_point():
            noise = torch.rand_like(values) * 0.2
            values.data.add_(noise if name.endswith("running_var") else noise - 0.1)


@torch.no_grad()
def _facts(network: nn.Module, size: int, *, is_fixed: bool) -> Network | None:
    """Return what a model's output is, by running it; None if it is not an embedding."""
    network.eval()
    images = torch.rand(1, 3, size, size)
    embedding = network(images)
    if not isinstance(embedding, torch.Tensor) or embedding.ndim != 2:
        return None
    dim = embedding.shape[1]
    try:
        found = feature_map(network, images)
    except (ValueError, AttributeError, RuntimeError, TypeError):
        return Network(dim, "pooled output")
    n_cells = found.shape[-1]
    if found.ndim != 4 or found.shape[2] != n_cells or size % n_cells or n_cells < 2:
        return Network(dim, "pooled output")
    is_pooled = found.shape[1] == dim and torch.allclose(found.mean((2, 3)), embedding, rtol=1e-3, atol=1e-4)
    is_token = getattr(network, "global_pool", None) == "token"
    output = "global average pooling" if is_pooled else "class token" if is_token else "pooled output"
    every = size // n_cells
    blocks = getattr(network, "blocks", None)
    layer = len(blocks) if isinstance(blocks, nn.Sequential) else 4
    return Network(dim, output, layer, found.shape[1], every, is_pooled, None if is_fixed else every)


def feature_map(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the map (B, D, cells, cells) before pooling; of a token model, that of its patches.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = network.forward_features(x)  # type: ignore[operator]
    if not isinstance(found, torch.Tensor) or found.ndim not in {3, 4}:
        raise ValueError("no map")
    if found.ndim == 4:
        return found.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else found
    patches = found[:, int(getattr(network, "num_prefix_tokens", 0)) :]
    if isqrt(patches.shape[1]) ** 2 != patches.shape[1]:
        raise ValueError("the patches are not those of a square")
    return token_map(patches)


def own_names(name: str, size: int, state: State) -> State:
    """Return the tensors of a checkpoint by the model's own names and shapes, as timm converts them for the model.

    Names that timm does not know stay, and are judged by what reads weights.
    """
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(name).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted = convert(dict(state), build(name, size))
    except (KeyError, TypeError, RuntimeError, AttributeError, ValueError):
        return state
    return dict(converted)


def cached_file(name: str) -> Path:
    """Return the file of a model's published weights in the cache of Hugging Face's hub, or torch's.

    Raises
    ------
    WeightsError
        If it is in neither. Nothing is downloaded.
    """
    from huggingface_hub import try_to_load_from_cache

    config = _configuration(name)
    hub = str(config.get("hf_hub_id") or "")
    if hub == "timm/":
        hub = f"timm/{name}"
    repository, _, revision = hub.partition("@")
    wanted = config.get("hf_hub_filename")
    for file_name in (wanted,) if wanted else _FILES:
        found = try_to_load_from_cache(repository, file_name, revision=revision or None) if hub else None
        if isinstance(found, str):
            return Path(found)
    url = str(config.get("url") or "")
    kept = Path(str(torch.hub.get_dir())) / "checkpoints" / url.rpartition("/")[2]
    if url and kept.is_file():
        return kept
    where = f"https://huggingface.co/{repository}" if hub else url or "no place that timm knows"
    raise WeightsError(
        f"The published weights of timm's model {name} are not on this machine, and hoarfrost does not download them. Where "
        f"there is a network, run python -c \"import timm; timm.create_model('{name}', pretrained=True)\". Or download them "
        f"from {where} and pass the file with --weights. random:0 is for a trial."
    )
