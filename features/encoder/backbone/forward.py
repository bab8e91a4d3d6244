"""The forward pass on a device: batches of uint8 images in, embeddings out, as fast as the machine allows."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from hoarfrost.features.devices import choose_device, enough_memory, full_float32, host_tensor, is_gpu, is_out_of_memory
from hoarfrost.features.encoder.backbone.network import CPU_GROUP, Network
from hoarfrost.features.encoder.backbone.repeated import Repeated
from hoarfrost.features.encoder.backbone.weights import Weights
from hoarfrost.features.errors import HoarfrostError

COMPILED_GROUP = 32  # on a CPU, larger groups are not faster, and take longer to compile and measure
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

logger = logging.getLogger(__name__)


class Backbone:
    """A frozen encoder on a device.

    Parameters
    ----------
    weights : Weights
    device : str
        "cpu", "cuda" or "mps".
    precision : str
        "float32", "bfloat16", or "int8:" and activation ranges (see `hoarfrost.features.encoder.backbone.int8`).
    batch_size : int
        How many images of the encoder's own size a GPU computes at once; on a CPU compiled code does, up to
        `COMPILED_GROUP`.
    layers : sequence of int
        The stages whose means are the embeddings; by default the encoder's own output.

    Attributes
    ----------
    compute : str
        The compute path: "eager", "compiled" or "openvino". Their results differ in the last bits. A GPU that runs
        out of memory changes from "compiled" to "eager".
    group : int
        How many images of the encoder's own size go through the layers at once.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        device: str = "cpu",
        precision: str = "float32",
        batch_size: int = 32,
        layers: Sequence[int] = (),
    ) -> None:
        self.encoder = weights.encoder
        self.device = torch.device(device)
        self.precision = precision
        self.batch_size = batch_size
        self.compute = "eager"
        self.group = CPU_GROUP if device == "cpu" else batch_size
        self.encoder.require_precision(precision)
        self._forward: Callable[[torch.Tensor], torch.Tensor]
        self._graph: Repeated | None
        if precision.startswith("int8"):
            from hoarfrost.features.encoder.backbone.int8 import Int8Network

            choose_device(device, precision)  # refuses a GPU
            self._forward, self.compute = Int8Network(weights, precision, layers), "openvino"
        else:
            self.network = Network(weights, layers)
            if self.device.type == "cpu" and precision == "float32" and "winograd" in self.encoder.fast_paths:
                self.network.use_winograd()
            with enough_memory(self.device, "the network"):
                self._forward = self.network.to_precision(DTYPES[precision]).to(self.device)
        self._use(self._forward)
        on_gpu = self.device.type == "cuda"
        self._copies = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]

    @property
    def compiled_group(self) -> int:
        """How many images go through compiled layers at once."""
        return min(self.batch_size, COMPILED_GROUP) if self.device.type == "cpu" else self.batch_size

    def group_for(self, size: int) -> int:
        """Return how many images of this size go through the layers at once: as many pixels as of the encoder's own."""
        return max(1, self.group * self.encoder.size**2 // size**2)

    @property
    def n_in_flight(self) -> int:
        """How many batches may be started before the first result is fetched."""
        return 1 if self.device.type == "cuda" else 0

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, D) float32, on the CPU, of images (B, 3, S, S) uint8 on any device."""
        return self.start(images)()

    @torch.no_grad()
    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps (B, dim, cells, cells) float32 of each stage, on the CPU, of images (B, 3, S, S) uint8.

        Compiled code is not used. The maps' means over the cells, side by side, are the embeddings.

        Raises
        ------
        EncoderError
            If the encoder does not have a feature map.
        ValueError
            In 8-bit integers: OpenVINO returns embeddings alone.
        """
        if not isinstance(self._forward, torch.nn.Module):
            raise ValueError("a network in 8-bit integers has no feature maps; use float32")
        groups = torch.split(images, self.group_for(images.shape[-1]))
        with full_float32(self.device):
            of_groups = [self.network.feature_maps(group.to(self.device)) for group in groups]
        return [torch.cat([found.cpu() for found in of_stage]) for of_stage in zip(*of_groups, strict=True)]

    @torch.no_grad()  # not inference_mode: a compiled network would be compiled again for its type of tensor
    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to compute embeddings; return a function that waits for them.

        `images` in pinned memory must not change until then.
        """
        if self._copies is None:
            embeddings = self._run(images.to(self.device)).cpu()
            return lambda: embeddings
        try:
            with torch.cuda.stream(self._copies):  # while the batch before is computed
                on_device = images.to(self.device, non_blocking=True)
        except RuntimeError as error:
            self._halve_group(error)
            on_device = None
        if on_device is None:
            embeddings = self._in_pieces(images)
            return lambda: embeddings
        torch.cuda.current_stream().wait_stream(self._copies)
        on_device.record_stream(torch.cuda.current_stream())
        result = self._run(on_device)
        on_host = host_tensor(result.shape, result.dtype, pinned=True)
        on_host.copy_(result, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()

        def finish() -> torch.Tensor:
            ready.synchronize()
            return on_host

        return finish

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        """Run whole groups of images; halve the group as often as a GPU's memory cannot hold it."""
        while True:
            try:
                groups = torch.split(images, self.group_for(images.shape[-1]))
                return torch.cat([self._run_group(group) for group in groups])
            except RuntimeError as error:
                self._halve_group(error)
            self._free_memory()

    def _in_pieces(self, images: torch.Tensor) -> torch.Tensor:
        """Copy and run one group after the other, if a GPU's memory cannot even hold the batch."""
        while True:
            self._free_memory()
            try:
                pieces = torch.split(images, self.group_for(images.shape[-1]))
                return torch.cat([self._run(piece.to(self.device)).cpu() for piece in pieces])
            except RuntimeError as error:
                self._halve_group(error)

    def _halve_group(self, error: RuntimeError) -> None:
        """Halve the group if a GPU ran out of memory; raise any other error again."""
        if not is_out_of_memory(error):
            raise error
        if self.group == 1:
            raise HoarfrostError(
                f"{self.device}: not enough memory for a single image. Free memory, or pass --device cpu."
            ) from error
        half = self.group // 2
        logger.warning("%s: out of memory with batches of %d; continuing with %d", self.device, self.group, half)
        if self.compute == "compiled":  # another size would have to be compiled, and there is no memory for it
            self.uncompile()
        self.group = half
        self._use(self._forward)

    def _free_memory(self) -> None:
        """Release cached memory; outside of exception handlers, whose errors keep tensors alive."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_group(self, images: torch.Tensor) -> torch.Tensor:
        padding = self.group_for(images.shape[-1]) - len(images)
        whole = F.pad(images, (0, 0, 0, 0, 0, 0, 0, padding)) if padding else images
        with full_float32(self.device):
            return (self._graph or self._forward)(whole)[: len(images)]

    def _use(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Use a forward pass for the groups from now on. A GPU repeats one of our own networks as a graph."""
        self._forward, self._graph = forward, None
        if is_gpu(self.device) and "compiled" in self.encoder.fast_paths:  # others may decide by what they compute
            self._graph = Repeated(forward, (self.group, 3, self.encoder.size, self.encoder.size))

    def compile(self) -> None:
        """Change to code made by torch.compile; raise any error that it raises, and change nothing then."""
        before, size = self.group, self.encoder.size
        compiled = torch.compile(self.network, dynamic=False, options={"freezing": True})
        self.group = self.compiled_group
        self._use(compiled)
        try:
            # Not enough memory for one group means that compiling fails: the group is not halved here.
            with torch.no_grad():
                self._run_group(torch.zeros((self.group, 3, size, size), dtype=torch.uint8, device=self.device))
        except Exception:
            self.group = before
            self._use(self.network)
            raise
        self.compute = "compiled"

    def uncompile(self) -> None:
        """Change back to the network that is not compiled."""
        self.group = CPU_GROUP if self.device.type == "cpu" else self.batch_size
        self.compute = "eager"
        self._use(self.network)
