"""The forward pass on a device: batches of uint8 images in, embeddings out, as fast as the machine can."""

import logging
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from features.backbone.network import CPU_GROUP, Network
from features.backbone.weights import Weights
from features.devices import choose_device
from features.errors import HoarfrostError
from features.fingerprint import SIZE

DIM = 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

logger = logging.getLogger(__name__)


class Backbone:
    """The frozen ResNet18 on a device.

    Parameters
    ----------
    weights : Weights
    device : str
        "cpu", "cuda" or "mps".
    precision : str
        "float32", "bfloat16", or "int8:" and activation ranges (see `features.backbone.int8`).
    batch_size : int
        How many images a GPU, or compiled code, takes at once.

    Attributes
    ----------
    compute : str
        The compute path: "eager", "compiled" or "openvino". Another one differs in the last bits.
    """

    def __init__(
        self, weights: Weights, *, device: str = "cpu", precision: str = "float32", batch_size: int = 32
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.batch_size = batch_size
        self.compute = "eager"
        self._group = CPU_GROUP if device == "cpu" else batch_size
        self._forward: Callable[[torch.Tensor], torch.Tensor]
        if precision.startswith("int8"):
            from features.backbone.int8 import Int8Network

            choose_device(device, precision)  # refuses a GPU
            self._forward, self.compute = Int8Network(weights, precision), "openvino"
        else:
            self._forward = self.network = self._make_network(weights)
        on_gpu = self.device.type == "cuda"
        self._copies = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]

    def _make_network(self, weights: Weights) -> Network:
        network = Network(weights)
        if self.device.type == "cpu" and self.precision == "float32":
            network.use_winograd()
        return network.to_precision(DTYPES[self.precision]).to(self.device)

    @property
    def n_in_flight(self) -> int:
        """How many batches may be started before the result of the first is asked for."""
        return 1 if self.device.type == "cuda" else 0

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Compute embeddings.

        Parameters
        ----------
        images : Tensor (B, 3, 224, 224) uint8, on any device

        Returns
        -------
        Tensor (B, 512) float32, on the CPU
        """
        return self.start(images)()

    @torch.no_grad()  # not inference_mode: a compiled network would be compiled again for its kind of tensor
    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to compute embeddings; on a GPU they are ready when the result is asked for.

        `images`, if in pinned memory, must stay as they are until then.
        """
        if self._copies is None:
            embeddings = self._run(images.to(self.device)).cpu()
            return lambda: embeddings
        try:
            with torch.cuda.stream(self._copies):  # beside the computation on the batch before
                on_device = images.to(self.device, non_blocking=True)
        except torch.OutOfMemoryError as error:
            raise HoarfrostError(
                f"{self.device}: not enough memory for a batch of {len(images)} images. Pass a smaller --batch-size."
            ) from error
        torch.cuda.current_stream().wait_stream(self._copies)
        on_device.record_stream(torch.cuda.current_stream())
        result = self._run(on_device)
        on_host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        on_host.copy_(result, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()

        def finish() -> torch.Tensor:
            ready.synchronize()
            return on_host

        return finish

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        """Run whole groups of images; where a GPU's memory does not hold one, halve it and go on."""
        while True:
            try:
                return torch.cat([self._run_group(group) for group in torch.split(images, self._group)])
            except torch.OutOfMemoryError as error:
                if self._group == 1:
                    raise HoarfrostError(
                        f"{self.device}: not enough memory for a single image. Free it, or pass --device cpu."
                    ) from error
                logger.warning(
                    "%s: out of memory with batches of %d; going on with %d", self.device, self._group, self._group // 2
                )
                self._group //= 2
            torch.cuda.empty_cache()  # outside the handler: its error holds on to tensors

    def _run_group(self, images: torch.Tensor) -> torch.Tensor:
        padding = self._group - len(images)
        whole = F.pad(images, (0, 0, 0, 0, 0, 0, 0, padding)) if padding else images
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 means float32
            return self._forward(whole)[: len(images)]

    def compile(self) -> None:
        """Go over to code made by torch.compile; raises whatever goes wrong there, and stays as it is then."""
        before = self._group
        compiled = torch.compile(self.network, dynamic=False, options={"freezing": True})
        self._group, self._forward = self.batch_size, compiled
        try:
            self._warm_up()
        except Exception:
            self._group, self._forward = before, self.network
            raise
        self.compute = "compiled"

    def uncompile(self) -> None:
        """Go back to the network as it is."""
        self._group = CPU_GROUP if self.device.type == "cpu" else self.batch_size
        self._forward, self.compute = self.network, "eager"

    def _warm_up(self) -> None:
        self.embed(torch.zeros((self.batch_size, 3, SIZE, SIZE), dtype=torch.uint8))
