"""What a lower precision costs, on every real image: the embeddings' cosine, and a head's AUC."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hoarfrost.evaluation import roc_auc
from hoarfrost.experiment.splits import split
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.encoder.backbone.int8 import calibrated_precision
from hoarfrost.features.encoder.precision import choose_precision
from hoarfrost.heads.kinds import Linear
from hoarfrost.training import Labelled, TrainingConfig
from tests.support.one_head import train_head
from tests.support.predicting import predict_probabilities

BUSI = Path(__file__).parents[3] / "shared" / "data" / "busi"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUSI.is_dir(), reason="../shared/data/busi is not on this machine"),
]


class RoundedConv2d(nn.Module):
    """What bfloat16 hardware computes: products of rounded numbers, summed in float32, and rounded again.

    Processors without it take minutes for BUSI by torch's own bfloat16.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight.float(), convolution.bias.float()  # type: ignore[union-attr]
        self.stride, self.padding = convolution.stride, convolution.padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x.float(), self.weight, self.bias, self.stride, self.padding).bfloat16()


def bfloat16_backbone(weights: Weights) -> Backbone:
    backbone = Backbone(weights, precision="bfloat16")
    if choose_precision("auto", "cpu") != "bfloat16":
        for parent in list(backbone.network.layers.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d) and parent is not backbone.network.layers:
                    setattr(parent, name, RoundedConv2d(child))
    return backbone


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Return every second image of BUSI."""
    dataset = read_dataset(BUSI)
    chosen = range(0, len(dataset), 2)
    return torch.stack([load_image(read()).expand(3, -1, -1) for _, read in dataset.images.contents(chosen)])


@pytest.fixture(scope="module")
def malignant() -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array([label == "malignant" for label in read_dataset(BUSI).labels[::2]]).astype(np.int64)


@pytest.fixture(scope="module")
def float32(weights: Weights, images: torch.Tensor) -> torch.Tensor:
    return Backbone(weights).embed(images)


def head_auc(embeddings: torch.Tensor, y: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> float:
    """Train a linear head; give its ROC AUC on the test split."""
    splits = split(y, np.arange(len(y)), ("rest", "malignant"))
    train, val, test = (
        Labelled(embeddings[splits == name], torch.from_numpy(y[splits == name])) for name in ("train", "val", "test")
    )
    head = train_head(Linear(), train, val, 2, TrainingConfig(), lambda y_true, found: roc_auc(y_true, found[:, 1]))
    return roc_auc(test.y.numpy(), predict_probabilities(head.module, test.x)[:, 1])


@pytest.mark.parametrize(
    ("precision", "least_cosine", "auc_within"), [("bfloat16", 0.999, 0.005), ("int8", 0.99, 0.01)]
)
def test_images_and_a_head_are_nearly_as_in_float32(
    precision: str,
    least_cosine: float,
    auc_within: float,
    weights: Weights,
    images: torch.Tensor,
    float32: torch.Tensor,
    malignant: "np.ndarray[tuple[int], np.dtype[np.int64]]",
) -> None:
    if precision == "int8":
        pytest.importorskip("openvino")
        backbone = Backbone(weights, precision=calibrated_precision(weights, images[::4]))
    else:
        backbone = bfloat16_backbone(weights)
    found = backbone.embed(images)
    assert torch.nn.functional.cosine_similarity(found, float32).min() >= least_cosine
    assert abs(head_auc(found, malignant) - head_auc(float32, malignant)) <= auc_within


def test_rounding_by_hand_is_what_torch_computes_in_bfloat16(weights: Weights, images: torch.Tensor) -> None:
    found = bfloat16_backbone(weights).embed(images[::100])
    expected = Backbone(weights, precision="bfloat16").embed(images[::100])
    assert torch.nn.functional.cosine_similarity(found, expected).min() >= 0.99999
