"""Where an encoder's weights come from, and whether they are its own."""

import logging
import pickle
import socket
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path

import torch

from hoarfrost.features.encoder.registry import DEFAULT, EncoderSpec, PublishedWeights
from hoarfrost.features.errors import WeightsError
from hoarfrost.features.fingerprint import weights_digest

DOWNLOAD_TIMEOUT_S = 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """An encoder's tensors, and where they come from.

    `name` is what the user asked for ("imagenet", "random:0", a file's name); `tensors` are
    float32, named as the encoder's network names them, without the classifier.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    encoder: EncoderSpec

    @property
    def sha256(self) -> str:
        """Digest of the tensors' names, shapes and values."""
        return weights_digest((name, tensor.numpy()) for name, tensor in self.tensors.items())


def load_weights(spec: str, encoder: EncoderSpec = DEFAULT) -> Weights:
    """Get the weights that a specification names.

    Parameters
    ----------
    spec : str
        "imagenet" (the encoder's published weights), "random:SEED", "auto" (imagenet where it can be
        had, else random:0, said in the log) or the path of a `.pth` or `.safetensors` checkpoint.
    encoder : EncoderSpec

    Raises
    ------
    WeightsError
        If they cannot be had, are damaged, or are not this encoder's.
    """
    if spec == "imagenet":
        return _weights(spec, _imagenet_state(encoder), spec, encoder)
    if spec == "auto":
        return _imagenet_or_random(encoder)
    if spec.startswith("random:"):
        return _random_weights(spec, encoder)
    return _weights(Path(spec).name, _read_checkpoint(Path(spec)), spec, encoder)


def _weights(name: str, state: Mapping[str, object], source: str, encoder: EncoderSpec) -> Weights:
    return Weights(name, _encoder_tensors(state, source, encoder), encoder)


def _imagenet_or_random(encoder: EncoderSpec) -> Weights:
    try:
        return load_weights("imagenet", encoder)
    except WeightsError as error:
        logger.warning(
            "%s Going on with random:0, an untrained backbone: its figures are a floor, not a result.", error
        )
        return load_weights("random:0", encoder)


def _random_weights(spec: str, encoder: EncoderSpec) -> Weights:
    seed = spec.removeprefix("random:")
    if not seed.isascii() or not seed.isdigit() or len(seed) > 19 or int(seed) >= 2**63:
        raise WeightsError(f"--weights {spec}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0.")
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(int(seed))
        state = encoder.build().state_dict()
    return _weights(f"random:{int(seed)}", state, spec, encoder)


# -- ImageNet weights: torchvision's loading, made safe for hospitals without a network ----------------------------------


def _imagenet_state(encoder: EncoderSpec) -> dict[str, torch.Tensor]:
    published = _published(encoder)
    imagenet_is_here(encoder)  # torch checks the hash of what it downloads, not of what already lies there
    try:
        # torch prints to stdout that it downloads; --json has that for itself.
        with _network_timeout(DOWNLOAD_TIMEOUT_S), redirect_stdout(sys.stderr):
            # weights_only: the hash in the name has 32 bits, too few to trust a pickle for.
            state = torch.hub.load_state_dict_from_url(
                published.url, progress=False, check_hash=True, weights_only=True
            )
            return dict(state)
    # OSError: no network, no room, no right to write; RuntimeError: another hash; ValueError: an odd proxy setting.
    except (OSError, HTTPException, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        path = imagenet_path(encoder)
        raise WeightsError(
            f"The ImageNet weights are not on this machine and could not be downloaded ({_reason(error)}). Bring the file "
            f"{path.name} (its SHA-256 begins with {published.sha256_prefix}) from {published.url} into {path.parent}, "
            "or pass --weights with a checkpoint of your own."
        ) from error


def _published(encoder: EncoderSpec) -> PublishedWeights:
    if encoder.published is None:
        raise WeightsError(
            f"--weights imagenet: the encoder {encoder.title} has no published weights. Pass a checkpoint of its own, or "
            "random:SEED."
        )
    return encoder.published


def imagenet_path(encoder: EncoderSpec = DEFAULT) -> Path:
    """Return the file in which torch keeps the encoder's published weights, there or not."""
    return Path(str(torch.hub.get_dir())) / "checkpoints" / _published(encoder).file_name


def imagenet_is_here(encoder: EncoderSpec = DEFAULT) -> bool:
    """Return whether the encoder's published weights are on this machine.

    Raises
    ------
    WeightsError
        If they are damaged.
    """
    path, prefix = imagenet_path(encoder), _published(encoder).sha256_prefix
    if not path.exists():
        return False
    try:
        digest = sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: the ImageNet weights cannot be read: {error.strerror}.") from error
    if not digest.startswith(prefix):
        raise WeightsError(
            f"{path}: damaged, or not torchvision's file: its SHA-256 begins with {digest[: len(prefix)]}, not {prefix}. "
            "Remove it, and it is downloaded again; or copy it again."
        )
    return True


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Bound torch's download: a firewall that drops packets would hold it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# -- checkpoints of one's own -------------------------------------------------------------------------------------------


def _read_checkpoint(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        reason = "no file" if path.exists() else "no such file"
        raise WeightsError(
            f"--weights {path}: {reason}. Give a .pth or .safetensors checkpoint, imagenet, random:SEED or auto."
        )
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_torch_file(path)
        return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, and loading it could run foreign code; refused. "
            "Save its state_dict() alone, with torch.save or as .safetensors."
        ) from error
    # A damaged archive surfaces as any of these (safetensors has an exception of its own, a plain Exception).
    except Exception as error:
        raise WeightsError(f"{path}: not a readable checkpoint ({_reason(error)}). Copy it again.") from error


def _reason(error: Exception) -> str:
    """Give the first sentence of a message: torch's further ones advise to load the file in an unsafe way."""
    return str(error).split(". ")[0] or type(error).__name__


def _check_torch_file(path: Path) -> None:
    """Tell what is no checkpoint at all: torch's own words for it are about pickles and unsafe loading."""
    with path.open("rb") as file:
        start = file.read(8)
        if not start:
            raise WeightsError(f"{path}: the file is empty. Copy it again.")
        if not start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle as before torch 1.6
            raise WeightsError(
                f"{path}: no checkpoint (it begins with {start!r}). Give a file written by torch.save, or a .safetensors."
            )
        if start.startswith(b"PK") and not zipfile.is_zipfile(file):
            raise WeightsError(f"{path}: the checkpoint is truncated. Copy it again.")


def _state_dict(content: object, path: Path) -> Mapping[str, object]:
    """Find the tensors in what training scripts save: the dict itself, or under "state_dict" or "model"."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a state_dict of named tensors.")
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            return _state_dict(content[key], path)
    return {name: value for name, value in content.items() if isinstance(name, str)}


def _encoder_tensors(state: Mapping[str, object], source: str, encoder: EncoderSpec) -> dict[str, torch.Tensor]:
    """Pick an encoder's tensors out of a state_dict, whatever prefix and last layer it has.

    Raises
    ------
    WeightsError
        Naming the first tensor that is missing, of a wrong shape, not finite, or too many.
    """
    with torch.device("meta"):  # names and shapes alone
        expected = {name: like for name, like in encoder.build().state_dict().items() if _decides_values(name)}
    prefix = _prefix(state, list(expected), source)
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    tensors = {}
    for name, like in expected.items():
        tensors[name] = _checked_tensor(found.get(name), like, prefix + name, source, encoder)
    parts = {_part(name) for name in expected}
    for name in found:
        if _part(name) in parts and _decides_values(name) and name not in expected:
            raise WeightsError(
                f"{source} is no {encoder.title}: it has {prefix}{name}, which a {encoder.title} does not."
            )
    return tensors


def _decides_values(name: str) -> bool:
    """Leave out BatchNorm's counters, which no embedding depends on."""
    return not name.endswith("num_batches_tracked")


def _part(name: str) -> str:
    """Return which part of a network a tensor is in, without its number: "layer" of "layer4.0.conv1.weight"."""
    first = name.partition(".")[0]
    return first.rstrip("0123456789") or first


def _prefix(state: Mapping[str, object], names: Sequence[str], source: str) -> str:
    """Find what stands before the network's own names ("module.", "backbone."): where most of them are."""
    ends = (names[0], names[-1])
    found = {key.removesuffix(end): 0 for key in state for end in ends if key == end or key.endswith(f".{end}")}
    for prefix in found:
        found[prefix] = sum(prefix + name in state for name in names)
    # A block within a network may have a layer of the first one's name, but few of the others.
    networks = [prefix for prefix, n_names in found.items() if 2 * n_names > len(names)]
    if len(networks) > 1:
        layer = names[0].rpartition(".")[0]
        raise WeightsError(
            f"{source}: holds several networks ({', '.join(prefix + layer for prefix in networks)}), and it is unclear "
            "which one to take. Save the state_dict of one of them."
        )
    return max(found, key=found.__getitem__, default="")


def _checked_tensor(value: object, like: torch.Tensor, name: str, source: str, encoder: EncoderSpec) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise WeightsError(f"{source} is no {encoder.title}: the tensor {name} is missing.")
    if value.shape != like.shape:
        raise WeightsError(
            f"{source} is no {encoder.title}: the tensor {name} has the shape {tuple(value.shape)}, not {tuple(like.shape)}."
        )
    if not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
        raise WeightsError(f"{source}: the tensor {name} holds no plain floating-point values, but {value.dtype}.")
    tensor = value.detach().to("cpu", torch.float32).contiguous()
    if not torch.isfinite(tensor).all():
        raise WeightsError(f"{source}: the tensor {name} holds NaN or infinite values.")
    if name.endswith("running_var") and (tensor < 0).any():
        raise WeightsError(f"{source}: the tensor {name} holds negative variances.")
    return tensor
