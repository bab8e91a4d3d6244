"""Encoders that are files: a program of torch.export, or an ONNX file. What they return is found by running them once."""

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from hoarfrost.features.encoder.asked import TORCH, Asked, Colours, Found
from hoarfrost.features.encoder.registry import IMAGENET_MEAN, IMAGENET_STD, Network
from hoarfrost.features.encoder.sessions import open_session
from hoarfrost.features.errors import EncoderError

USUAL_SIZE = 224  # where a file takes any


class GraphNetwork(nn.Module):
    """A network read from a file: normalised images (B, 3, S, S) float32 RGB to embeddings (B, D).

    Attributes
    ----------
    batch : int
        The batch size that is fixed in the file; 0 for any.
    size : int
        The height and width that are fixed in the file; 0 for any.
    """

    batch = 0
    size = 0

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__()
        self._is_bgr = options.get("channels") == "bgr"

    def train(self, mode: bool = True) -> "GraphNetwork":  # noqa: ARG002 - the signature is torch's
        """Do nothing: a file is traced for use, and an exported program refuses to change."""
        return self

    def run(self, images: torch.Tensor) -> torch.Tensor:
        """Return the file's output for whole batches."""
        raise NotImplementedError

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        """Return the file's output, (B, D) or (B, D, h, w), for a batch of any size."""
        x = (images.flip(1) if self._is_bgr else images).contiguous()
        if not self.batch:
            return self.run(x)
        outputs = []
        for group in torch.split(x, self.batch):
            padding = self.batch - len(group)
            whole = F.pad(group, (0, 0, 0, 0, 0, 0, 0, padding)) if padding else group
            outputs.append(self.run(whole)[: len(group)])
        return torch.cat(outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return embeddings: the output, or the mean of its cells."""
        found = self.raw(images)
        return found if found.ndim == 2 else found.mean((2, 3))


class OnnxNetwork(GraphNetwork):
    """An ONNX file, on the CPU, and the one that its images go through before."""

    def __init__(self, content: bytes, before: bytes | None, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self._session = open_session(content)
        self._before = None if before is None else open_session(before)
        names = [each.name for each in self._session.get_outputs()]
        self._output = options.get("output") or names[0]
        if self._output not in names:
            raise ValueError(f"it has no output {self._output!r}, but {', '.join(names)}")
        first = self._session.get_inputs()[0] if self._before is None else self._before.get_inputs()[0]
        if first.type not in {"tensor(float)", "tensor(float16)"} or len(first.shape) != 4:
            raise ValueError(f"its input {first.name} is {first.type} of {first.shape}, not float images (N, 3, H, W)")
        batches = [s.get_inputs()[0].shape[0] for s in (self._session, self._before) if s is not None]
        self.batch = next((n for n in batches if isinstance(n, int)), 0)
        self.size = first.shape[2] if isinstance(first.shape[2], int) else 0

    def run(self, images: torch.Tensor) -> torch.Tensor:
        """Return the output for a whole batch."""
        x = images.cpu() if self._before is None else _run(self._before, None, images.cpu())
        return _run(self._session, self._output, x).to(images.device)


def _run(session: Any, output: str | None, x: torch.Tensor) -> torch.Tensor:
    first = session.get_inputs()[0]
    x = x.half() if first.type == "tensor(float16)" else x.float()
    return torch.from_numpy(session.run(None if output is None else [output], {first.name: x.numpy()})[0]).float()


class ProgramNetwork(GraphNetwork):
    """A program of torch.export, on any device."""

    def __init__(self, content: bytes, options: Mapping[str, str]) -> None:
        super().__init__(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for developers of exporters
            if not zipfile.is_zipfile(io.BytesIO(content)):  # torch would log a traceback first
                raise ValueError("it is not a program of torch.export")
            program = torch.export.load(io.BytesIO(content))
            self.program = program.module(check_guards=False)  # what it was traced with need not be repeated
        names = program.graph_signature.user_inputs
        inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
        if len(inputs) != 1 or inputs[0].ndim != 4 or inputs[0].dtype != torch.float32:
            raise ValueError("it does not take one float32 tensor of images (N, 3, H, W)")
        self.batch, self.size = (n if isinstance(n, int) else 0 for n in (inputs[0].shape[0], inputs[0].shape[2]))

    def run(self, images: torch.Tensor) -> torch.Tensor:
        """Return the first output for a whole batch."""
        found = self.program(images)
        while not isinstance(found, torch.Tensor):
            found = next(iter(found.values())) if isinstance(found, Mapping) else found[0]
        return found.float()


def open_graph(family: str, network: Network, content: Mapping[str, torch.Tensor]) -> GraphNetwork:
    """Return the network of a file.

    Parameters
    ----------
    family : "torch" or "onnx"
    network : Network
        What is known of it.
    content : mapping
        The bytes (uint8) of its file, "network", and of that of its preprocessing, "preprocess".

    Raises
    ------
    EncoderError
        If it is not such a file.
    """
    before = content.get("preprocess")
    try:
        return _opened(
            family,
            content["network"].numpy().tobytes(),
            None if before is None else before.numpy().tobytes(),
            network.options,
        )
    except EncoderError:
        raise
    except Exception as error:  # both libraries raise nearly anything for a damaged file
        raise EncoderError(f"The encoder's {family} file cannot be used: {_first_line(error)}.") from error


def _opened(family: str, content: bytes, before: bytes | None, options: Mapping[str, str]) -> GraphNetwork:
    if family == "torch":
        return ProgramNetwork(content, options)
    return OnnxNetwork(content, before, options)


def find_graph(asked: Asked) -> Found:
    """Return what a file is as an encoder. Two images are run through it.

    Raises
    ------
    EncoderError
        If the file is missing, is not of its kind, or does not return one embedding per image.
    """
    before = asked.options.get("preprocess")
    names = [asked.source, *([] if before is None else [before])]
    content = [_read(asked, name) for name in names]
    options = {name: asked.options[name] for name in ("channels", "output") if name in asked.options}
    asked.choice("channels", "rgb", "bgr")
    try:
        network = _opened(asked.family[:-1], content[0], None if before is None else content[1], options)
        size = asked.size or network.size or USUAL_SIZE
        if network.size not in (0, size):
            raise ValueError(f"it takes images of {network.size} x {network.size} pixels, not {size} x {size}")
        with torch.no_grad():
            found = network.raw(torch.rand(2, 3, size, size))
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(f"{asked.source}: the encoder cannot be used: {_first_line(error)}.") from error
    facts = _facts(asked, found, size, network.batch, options)
    mean, std = _normalisation(asked, is_raw=before is not None)
    file = ",preprocess=".join(str(Path(name).absolute()) for name in names)
    return Found(f"{asked.family}{Path(asked.source).name}", size, mean, std, facts, file)


def _read(asked: Asked, name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise EncoderError(f"--encoder {asked.text}: {name} cannot be read: {error.strerror}.") from error


def _facts(asked: Asked, found: torch.Tensor, size: int, batch: int, options: Mapping[str, str]) -> Network:
    shape = tuple(found.shape)
    if len(shape) not in {2, 4} or shape[0] != 2 or not torch.isfinite(found).all():
        raise EncoderError(
            f"{asked.source}: the output for 2 images is {shape}; an encoder returns numbers (2, D), or a map (2, D, h, w). "
            "Export the network without its classifier, up to its embedding."
        )
    is_map = len(shape) == 4 and shape[2] == shape[3] > 1 and size % shape[2] == 0
    n_batch = batch if asked.family == TORCH else 0  # what decides whether it can be exported
    if not is_map:
        return Network(shape[1], "output", batch=n_batch, options=options)
    return Network(shape[1], "global average pooling", 1, shape[1], size // shape[2], batch=n_batch, options=options)


def _normalisation(asked: Asked, *, is_raw: bool) -> tuple[Colours, Colours]:
    """Return the mean and standard deviation of red, green and blue from 0 to 1; raw images go through a file first."""
    scale = float(asked.choice("scale", *(("255", "1") if is_raw else ("1", "255"))))
    is_stated = is_raw or scale == 255  # a network that takes 0 to 255 has its own normalisation
    none = (0.0,) * 3, (1.0,) * 3
    mean, std = none if is_stated else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = asked.colours("mean", mean), asked.colours("std", std)
    if min(std) <= 0:
        raise asked.refused("std must be above zero")
    if asked.options.get("channels") == "bgr":  # in the order that the network takes
        mean, std = mean[::-1], std[::-1]
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)  # type: ignore[return-value]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".") or type(error).__name__
