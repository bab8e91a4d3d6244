"""A backbone that costs next to nothing and tells images apart, for tests of everything around it.

Run as a script it is `hoarfrost` with that backbone, slowed down and committing often:
`python -m tests.support.standin SECONDS_A_BATCH extract …`.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

import hoarfrost.features.cache.parts
from hoarfrost.features.encoder.registry import RESNET18, EncoderSpec


class StandIn:
    """Takes the place of `hoarfrost.features.encoder.backbone.Backbone`; counts the images it is given."""

    forwarded = 0
    seconds_a_batch = 0.0
    compute = "eager"
    n_in_flight = 0

    def __init__(self, *_: object, **__: object) -> None: ...

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        embeddings = self.embed(images)
        return lambda: embeddings

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(StandIn.seconds_a_batch)
        StandIn.forwarded += len(images)
        cells = torch.nn.functional.adaptive_avg_pool2d(images.float(), (16, 16))  # (B, 3, 16, 16)
        return cells.flatten(1)[:, :512].contiguous()


@cache
def cached_weights(spec: str, encoder: EncoderSpec = RESNET18) -> object:
    """Load weights once."""
    from hoarfrost.features.encoder.backbone.weights import load_weights

    return load_weights(spec, encoder)


def note_opened(log: int, event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(".png"):
        os.write(log, f"{arguments[0]}\n".encode())


def stand_in_module() -> ModuleType:
    """Return what replaces `hoarfrost.features.encoder.backbone` in a process of its own: torchvision imports slowly."""
    module = ModuleType("hoarfrost.features.encoder.backbone")
    rooms = Path(hoarfrost.features.cache.parts.__file__).parents[1]
    module.__path__ = [str(rooms / "encoder" / "backbone")]  # its modules are there
    module.Backbone = StandIn  # type: ignore[attr-defined]
    module.load_weights = lambda spec, _: SimpleNamespace(name=spec, sha256="ab" * 32)  # type: ignore[attr-defined]
    module.choose_compute = lambda *_, **__: None  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    from hoarfrost.cli import main

    StandIn.seconds_a_batch = float(sys.argv.pop(1))
    sys.modules["hoarfrost.features.encoder.backbone"] = stand_in_module()
    hoarfrost.features.cache.parts.COMMIT_SECONDS = 0.2
    if "HOARFROST_TEST_OPENED" in os.environ:  # a file that is to list the images opened
        log = os.open(os.environ["HOARFROST_TEST_OPENED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sys.addaudithook(lambda event, args: note_opened(log, event, args))
    main(prog_name="hoarfrost")
