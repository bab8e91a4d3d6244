"""The same embeddings by Ray Data, as its guide to batch inference would have them: what actors are measured against.

`python -m tests.benchmarks.ray_data FOLDER OUTPUT` prints the seconds that it takes, Ray's start not counted.
"""

import sys
import time
from typing import Any

import numpy as np

from hoarfrost.features.processors import usable_cpus

WEIGHTS = "random:0"
BATCH_SIZE = 32


def decoded(batch: dict[str, Any]) -> dict[str, Any]:
    """Decode a batch of files."""
    from hoarfrost.features.decoding.looks import load_image

    return {"path": batch["path"], "image": np.stack([load_image(content).numpy() for content in batch["bytes"]])}


class Embed:
    """Embeds batches by the very backbone of the engine."""

    def __init__(self) -> None:
        from hoarfrost.features.encoder.backbone import Backbone, load_weights

        self.backbone = Backbone(load_weights(WEIGHTS), device="cpu", precision="float32", batch_size=BATCH_SIZE)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"path": batch["path"], "embedding": self.backbone.embed(torch.from_numpy(batch["image"])).numpy()}


def main(folder: str, output: str) -> None:
    import ray

    ray.init(address="local", num_cpus=usable_cpus(), log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.monotonic()
    files = ray.data.read_binary_files(folder, include_paths=True)
    images = files.map_batches(decoded, batch_size=BATCH_SIZE)
    images.map_batches(Embed, batch_size=BATCH_SIZE, concurrency=1, num_cpus=1).write_parquet(output)
    print(time.monotonic() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
