"""Other programs that extract embeddings, each run by the Python that has it installed. Also the script that they run.

`python peers.py prepare NAME IMAGES FOLDER` makes what a program needs once, and `python peers.py embed NAME IMAGES FOLDER
PRECISION` writes the embeddings of a folder of images. Neither needs this project.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MODULES = {"eva": "eva", "lightly-train": "lightly_train"}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-true"}
BATCH = 32


def installed() -> dict[str, str]:
    """Return the Python that has each program: this one, or one of PEERS (paths, as in PATH)."""
    pythons = [sys.executable, *filter(None, os.environ.get("PEERS", "").split(os.pathsep))]
    return {
        name: python for name, module in MODULES.items() for python in reversed(pythons) if _has_module(python, module)
    }


def _has_module(python: str, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], check=False, capture_output=True).returncode == 0


def command(python: str, *arguments: str) -> list[str]:
    # -P: the modules beside this file are not the standard library's.
    return [python, "-P", str(Path(__file__)), *arguments]


def _prepare(name: str, images: Path, folder: Path) -> None:
    """lightly-train embeds with checkpoints of its own training only, so train one for an epoch on a few images."""
    if name == "lightly-train":
        import lightly_train  # type: ignore[import-not-found, unused-ignore]

        lightly_train.pretrain(
            out=folder / "trained", data=images, model="torchvision/resnet18", method="simclr", epochs=1, batch_size=8,
            num_workers=0, accelerator="cpu",
        )  # fmt: skip


def _lightly_train(images: Path, folder: Path, precision: str) -> None:
    import lightly_train  # type: ignore[import-not-found, unused-ignore]

    lightly_train.embed(
        out=folder / "embeddings.pt", data=images, checkpoint=folder / "trained" / "checkpoints" / "last.ckpt",
        format="torch", overwrite=True, accelerator="cpu", precision=PRECISIONS[precision], num_workers=_workers(),
    )  # fmt: skip


def _eva(images: Path, folder: Path, precision: str) -> None:
    import torch
    from eva.core.callbacks import ClassificationEmbeddingsWriter  # type: ignore[import-not-found, unused-ignore]
    from eva.core.models.modules import HeadModule  # type: ignore[import-not-found, unused-ignore]
    from eva.core.trainers import Trainer  # type: ignore[import-not-found, unused-ignore]
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet18

    class Images(ImageFolder):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image, torch.tensor(label), {}

        def filename(self, index: int) -> str:
            return str(Path(self.samples[index][0]).relative_to(self.root))

    steps = [
        transforms.Resize((224, 224)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    network = resnet18(weights=None)
    network.fc = torch.nn.Identity()
    module = HeadModule(head=torch.nn.Linear(512, 2), criterion=torch.nn.CrossEntropyLoss(), backbone=network)
    writer = ClassificationEmbeddingsWriter(output_dir=str(folder / "eva"), overwrite=True)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[writer], precision=PRECISIONS[precision], max_epochs=1,
        default_root_dir=str(folder / "logs"),
    )  # fmt: skip
    loader = DataLoader(Images(str(images), transforms.Compose(steps)), BATCH, num_workers=_workers())
    trainer.predict(module, [loader], return_predictions=False)


def _workers() -> int:
    return len(os.sched_getaffinity(0))


EMBED = {"eva": _eva, "lightly-train": _lightly_train}

if __name__ == "__main__" and sys.argv[1] == "prepare":
    _prepare(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
elif __name__ == "__main__":
    EMBED[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
