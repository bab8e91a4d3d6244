"""Where an encoder's weights come from, and whether they fit the encoder."""

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

from hoarfrost.features.encoder.registry import DEFAULT, PUBLISHED_WORDS, EncoderSpec, PublishedWeights, network_files
from hoarfrost.features.errors import WeightsError
from hoarfrost.features.fingerprint import weights_digest

DOWNLOAD_TIMEOUT_S = 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """An encoder's tensors: float32, with the network's names, without the classifier.

    `name` is what the user asked for: "imagenet", "pretrained", "random:0" or a file's name.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    encoder: EncoderSpec

    @property
    def sha256(self) -> str:
        """The digest of the tensors' names, shapes and values."""
        return weights_digest((name, tensor.numpy()) for name, tensor in self.tensors.items())


def load_weights(spec: str, encoder: EncoderSpec = DEFAULT) -> Weights:
    """Load the weights that a specification names.

    Parameters
    ----------
    spec : str
        "imagenet" or "pretrained" (the encoder's published weights), "random:SEED", "auto" (those if available, else
        random:0 with a warning) or the path of a `.pth` or `.safetensors` checkpoint.
    encoder : EncoderSpec

    Raises
    ------
    WeightsError
        If the weights are not available, are damaged, or do not fit this encoder.
    """
    if encoder.opened is not None:
        return _network_weights(spec, encoder)
    state: Mapping[str, object]
    if spec == "auto":
        try:
            return load_weights("imagenet", encoder)
        except WeightsError as error:
            logger.warning("%s Continuing with random:0, an untrained encoder: its scores are not a result.", error)
            return load_weights("random:0", encoder)
    if spec in PUBLISHED_WORDS:
        name, state = _published(spec, encoder).word, _published_state(spec, encoder)
    elif spec.startswith("random:"):
        seed = _seed(spec)
        with torch.random.fork_rng(devices=[]):  # does not change the caller's random state
            torch.manual_seed(seed)
            name, state = f"random:{seed}", encoder.build().state_dict()
    else:
        name, state = Path(spec).name, _read_checkpoint(Path(spec))
    if encoder.renamed is not None and not spec.startswith("random:"):
        state = encoder.renamed(state)
    return Weights(name, _encoder_tensors(state, spec, encoder), encoder)


def _network_weights(spec: str, encoder: EncoderSpec) -> Weights:
    """Read an encoder that is a file, and that of its preprocessing: their bytes are its tensors."""
    tensors = {}
    for part, name in zip(("network", "preprocess"), network_files(spec), strict=False):
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise WeightsError(
                f"{name}: the file of the encoder {encoder.title} cannot be read: {error.strerror}. If it was moved, pass "
                "its path with --weights."
            ) from error
        tensors[part] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return Weights(Path(network_files(spec)[0]).name, tensors, encoder)


def _seed(spec: str) -> int:
    seed = spec.removeprefix("random:")
    if not seed.isascii() or not seed.isdigit() or len(seed) > 19 or int(seed) >= 2**63:
        raise WeightsError(f"--weights {spec}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0.")
    return int(seed)


# -- ImageNet weights: torchvision's loading, made safe for hospitals without a network -----------------------------------


def _published_state(spec: str, encoder: EncoderSpec) -> Mapping[str, object]:
    published = _published(spec, encoder)
    if published.find is not None:
        return _read_checkpoint(published.find())
    imagenet_is_here(encoder)  # torch checks the hash of a download, not of a file that exists
    try:
        # torch prints to stdout that it downloads; --json prints its JSON there.
        with _network_timeout(DOWNLOAD_TIMEOUT_S), redirect_stdout(sys.stderr):
            # weights_only: the hash in the name has 32 bits, too few to trust a pickle for.
            state = torch.hub.load_state_dict_from_url(
                published.url, progress=False, check_hash=True, weights_only=True
            )
            return dict(state)
    # OSError: no network, no space, no permission; RuntimeError: another hash; ValueError: an odd proxy setting.
    except (OSError, HTTPException, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        path = imagenet_path(encoder)
        raise WeightsError(
            f"The ImageNet weights are not on this machine and could not be downloaded ({_reason(error)}). On another "
            f"machine, download {published.url} (its SHA-256 begins with {published.sha256_prefix}). Copy the file "
            f"{path.name} to {path.parent}. Or pass --weights with your own checkpoint, or random:0 for a trial."
        ) from error


def _published(spec: str, encoder: EncoderSpec) -> PublishedWeights:
    if encoder.published is None:
        raise WeightsError(
            f"--weights {spec}: the encoder {encoder.title} has no published weights. Pass a checkpoint of its own, or "
            "random:SEED."
        )
    return encoder.published


def imagenet_path(encoder: EncoderSpec = DEFAULT) -> Path:
    """Return the file in which torch keeps the encoder's published weights, whether it exists or not."""
    return Path(str(torch.hub.get_dir())) / "checkpoints" / _published("imagenet", encoder).file_name


def imagenet_is_here(encoder: EncoderSpec = DEFAULT) -> bool:
    """Return whether the encoder's published weights are on this machine; raise WeightsError if they are damaged."""
    path, prefix = imagenet_path(encoder), _published("imagenet", encoder).sha256_prefix
    if not path.exists():
        return False
    try:
        digest = sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: the ImageNet weights cannot be read: {error.strerror}.") from error
    if not digest.startswith(prefix):
        raise WeightsError(
            f"{path}: damaged, or not torchvision's file: its SHA-256 begins with {digest[: len(prefix)]}, not {prefix}. "
            "Remove the file to download it again, or copy it again."
        )
    return True


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Limit torch's download: behind a firewall that drops packets it would never end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# -- the user's own checkpoints ------------------------------------------------------------------------------------------


def _read_checkpoint(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        reason = "not a file" if path.exists() else "no such file"
        raise WeightsError(
            f"--weights {path}: {reason}. Pass a .pth or .safetensors checkpoint, imagenet, random:SEED or auto."
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
            f"{path}: refused, because it contains more than tensors, and loading it could run foreign code. "
            "Save only its state_dict(), with torch.save or as .safetensors."
        ) from error
    # A damaged archive raises nearly any error; that of safetensors is a plain Exception.
    except Exception as error:
        raise WeightsError(f"{path}: not a readable checkpoint ({_reason(error)}). Copy it again.") from error


def _reason(error: Exception) -> str:
    """Return the first sentence of a message: torch's later ones advise to load the file in an unsafe way."""
    return str(error).split(". ")[0] or type(error).__name__


def _check_torch_file(path: Path) -> None:
    """Raise WeightsError if a file is not a checkpoint: torch's own messages are about pickles and unsafe loading."""
    with path.open("rb") as file:
        start = file.read(8)
        if not start:
            raise WeightsError(f"{path}: the file is empty. Copy it again.")
        if not start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle as before torch 1.6
            raise WeightsError(
                f"{path}: not a checkpoint (it begins with {start!r}). Pass a file written by torch.save, or a .safetensors."
            )
        if start.startswith(b"PK") and not zipfile.is_zipfile(file):
            raise WeightsError(f"{path}: the checkpoint is truncated. Copy it again.")


def _state_dict(content: object, path: Path) -> Mapping[str, object]:
    """Return the tensors in what training scripts save: the dict itself, or under "state_dict" or "model"."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: contains a {type(content).__name__}, not a state_dict of named tensors.")
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            return _state_dict(content[key], path)
    return {name: value for name, value in content.items() if isinstance(name, str)}


def _encoder_tensors(state: Mapping[str, object], source: str, encoder: EncoderSpec) -> dict[str, torch.Tensor]:
    """Return an encoder's tensors in a state_dict of any prefix and last layer; raise WeightsError for a wrong one."""
    with torch.device("meta"):  # only names and shapes
        own = encoder.build().state_dict()
    # Whole numbers follow from the network: BatchNorm's counters, and Swin's indices of positions.
    expected = {name: like for name, like in own.items() if like.is_floating_point()}
    prefix = _prefix(state, list(expected), source)
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    tensors = {
        name: _checked_tensor(found.get(name), like, prefix + name, source, encoder) for name, like in expected.items()
    }
    parts = {_part(name) for name in expected}
    for name in found:
        if _part(name) in parts and name not in own:
            raise WeightsError(
                f"{source} is not a {encoder.title}: it has {prefix}{name}, which a {encoder.title} does not."
            )
    return tensors


def _part(name: str) -> str:
    """Return the part of a network that a tensor is in, without its number: "layer" of "layer4.0.conv1.weight"."""
    first = name.partition(".")[0]
    return first.rstrip("0123456789") or first


def _prefix(state: Mapping[str, object], names: Sequence[str], source: str) -> str:
    """Return the prefix ("module.", "backbone.") with which most of the network's own names are there."""
    ends = (names[0], names[-1])
    found = {key.removesuffix(end): 0 for key in state for end in ends if key == end or key.endswith(f".{end}")}
    for prefix in found:
        found[prefix] = sum(prefix + name in state for name in names)
    # A block within a network may have a layer with the first one's name, but few of the others.
    networks = [prefix for prefix, n_names in found.items() if 2 * n_names > len(names)]
    if len(networks) > 1:
        layer = names[0].rpartition(".")[0]
        raise WeightsError(
            f"{source}: contains several networks ({', '.join(prefix + layer for prefix in networks)}), and it is unclear "
            "which one to use. Save the state_dict of one of them."
        )
    return max(found, key=found.__getitem__, default="")


def _checked_tensor(value: object, like: torch.Tensor, name: str, source: str, encoder: EncoderSpec) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise WeightsError(f"{source} is not a {encoder.title}: the tensor {name} is missing.")
    if value.shape != like.shape:
        raise WeightsError(
            f"{source} is not a {encoder.title}: the tensor {name} has the shape {tuple(value.shape)}, not "
            f"{tuple(like.shape)}."
        )
    if not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
        raise WeightsError(f"{source}: the tensor {name} ({value.dtype}) does not contain plain floating-point values.")
    tensor = value.detach().to("cpu", torch.float32).contiguous()
    if not torch.isfinite(tensor).all():
        raise WeightsError(f"{source}: the tensor {name} contains NaN or infinite values.")
    if name.endswith("running_var") and (tensor < 0).any():
        raise WeightsError(f"{source}: the tensor {name} contains negative variances.")
    return tensor
