"""Where the backbone's weights come from, and whether they are a ResNet18's."""

import logging
import os
import pickle
import re
import socket
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.models import ResNet18_Weights, resnet18

from hoarfrost.features.errors import WeightsError
from hoarfrost.features.fingerprint import weights_digest

IMAGENET = ResNet18_Weights.IMAGENET1K_V1
DOWNLOAD_TIMEOUT_S = 20.0

# The conv1 that stands in no block: "module.conv1.weight", but not "layer1.0.conv1.weight".
_STEM = re.compile(r"((?:(?!layer\d+\.)[^.]+\.)*)conv1\.weight")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """The backbone's tensors, and where they come from.

    `name` is what the user asked for ("imagenet", "random:0", a file's name); `tensors` are
    float32, named as torchvision names them, without the classifier.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def sha256(self) -> str:
        """Digest of the tensors' names, shapes and values."""
        return weights_digest((name, tensor.numpy()) for name, tensor in self.tensors.items())


def load_weights(spec: str) -> Weights:
    """Get the weights that a specification names.

    Parameters
    ----------
    spec : str
        "imagenet" (torchvision's IMAGENET1K_V1), "random:SEED", "auto" (imagenet where it can be
        had, else random:0, said in the log) or the path of a `.pth` or `.safetensors` checkpoint.

    Raises
    ------
    WeightsError
        If they cannot be had, are damaged, or are not a ResNet18's.
    """
    if spec == "imagenet":
        return Weights(spec, _backbone_tensors(_imagenet_state(), "imagenet"))
    if spec == "auto":
        return _imagenet_or_random()
    if spec.startswith("random:"):
        return _random_weights(spec)
    return Weights(Path(spec).name, _backbone_tensors(_read_checkpoint(Path(spec)), spec))


def _imagenet_or_random() -> Weights:
    try:
        return load_weights("imagenet")
    except WeightsError as error:
        logger.warning(
            "%s Going on with random:0, an untrained backbone: its figures are a floor, not a result.", error
        )
        return load_weights("random:0")


def _random_weights(spec: str) -> Weights:
    seed = spec.removeprefix("random:")
    if not seed.isascii() or not seed.isdigit() or len(seed) > 19 or int(seed) >= 2**63:
        raise WeightsError(f"--weights {spec}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0.")
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(int(seed))
        state = resnet18(weights=None).state_dict()
    return Weights(f"random:{int(seed)}", _backbone_tensors(state, spec))


# -- ImageNet weights: torchvision's loading, made safe for hospitals without a network ----------------------------------


def _imagenet_state() -> dict[str, torch.Tensor]:
    imagenet_is_here()  # torch checks the hash of what it downloads, not of what already lies there
    try:
        # torch prints to stdout that it downloads; --json has that for itself.
        with _network_timeout(DOWNLOAD_TIMEOUT_S), redirect_stdout(sys.stderr):
            # weights_only: the hash in the name has 32 bits, too few to trust a pickle for.
            return dict(IMAGENET.get_state_dict(progress=False, check_hash=True, weights_only=True))
    # OSError: no network, no room, no right to write; RuntimeError: another hash; ValueError: an odd proxy setting.
    except (OSError, HTTPException, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        path = imagenet_path()
        raise WeightsError(
            f"The ImageNet weights are not on this machine and could not be downloaded ({_reason(error)}). Bring the file "
            f"{path.name} (its SHA-256 begins with {_hash_prefix(path)}) from {IMAGENET.url} into {path.parent}, "
            "or pass --weights with a checkpoint of your own."
        ) from error


def imagenet_path() -> Path:
    """Give the file in which torch keeps the ImageNet weights, there or not."""
    return Path(str(torch.hub.get_dir())) / "checkpoints" / os.path.basename(str(IMAGENET.url))


def imagenet_is_here() -> bool:
    """Tell whether the ImageNet weights are on this machine.

    Raises
    ------
    WeightsError
        If they are damaged.
    """
    path = imagenet_path()
    if not path.exists():
        return False
    prefix = _hash_prefix(path)
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


def _hash_prefix(path: Path) -> str:
    """Give what the file's SHA-256 begins with: torchvision's names end with it."""
    return path.stem.rpartition("-")[2]


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


def _backbone_tensors(state: Mapping[str, object], source: str) -> dict[str, torch.Tensor]:
    """Pick a ResNet18's tensors out of a state_dict, whatever prefix and last layer it has.

    Raises
    ------
    WeightsError
        Naming the first tensor that is missing, of a wrong shape, not finite, or too many.
    """
    with torch.device("meta"):  # names and shapes alone
        expected = {name: like for name, like in resnet18(weights=None).state_dict().items() if _decides_values(name)}
    prefix = _prefix(state, source)
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    tensors = {}
    for name, like in expected.items():
        tensors[name] = _checked_tensor(found.get(name), like, prefix + name, source)
    for name in found:
        if name.startswith(("conv1.", "bn1.", "layer")) and _decides_values(name) and name not in expected:
            raise WeightsError(f"{source} is no ResNet18: it has {prefix}{name}, which a ResNet18 does not.")
    return tensors


def _decides_values(name: str) -> bool:
    """Leave out the classifier, and BatchNorm's counters, which no embedding depends on."""
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def _prefix(state: Mapping[str, object], source: str) -> str:
    """Find what stands before the ResNet's own names ("module.", "backbone."): it is where the first layer is."""
    prefixes = [match[1] for key in state if (match := _STEM.fullmatch(key))]
    networks = [prefix for prefix in prefixes if f"{prefix}layer1.0.conv1.weight" in state]
    if len(networks) > 1:
        raise WeightsError(
            f"{source}: holds several networks ({', '.join(prefix + 'conv1' for prefix in networks)}), and it is unclear "
            "which one to take. Save the state_dict of one of them."
        )
    return next(iter(networks or prefixes), "")


def _checked_tensor(value: object, like: torch.Tensor, name: str, source: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise WeightsError(f"{source} is no ResNet18: the tensor {name} is missing.")
    if value.shape != like.shape:
        raise WeightsError(
            f"{source} is no ResNet18: the tensor {name} has the shape {tuple(value.shape)}, not {tuple(like.shape)}."
        )
    if not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
        raise WeightsError(f"{source}: the tensor {name} holds no plain floating-point values, but {value.dtype}.")
    tensor = value.detach().to("cpu", torch.float32).contiguous()
    if not torch.isfinite(tensor).all():
        raise WeightsError(f"{source}: the tensor {name} holds NaN or infinite values.")
    if name.endswith("running_var") and (tensor < 0).any():
        raise WeightsError(f"{source}: the tensor {name} holds negative variances.")
    return tensor
