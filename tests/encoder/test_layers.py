"""Earlier stages of the same pass: the means of torchvision's own feature maps, in any precision, at any size."""

import importlib.util

import numpy as np
import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.looks import load_looks
from hoarfrost.features.decoding.views import View
from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import EncoderError
from tests.support.builders import encode, picture

ALL = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0")


def looks(size: int, n: int = 3) -> torch.Tensor:
    """Return some images at a size, (n, 3, size, size) uint8."""
    content = [encode(picture(200 + 40 * i, 180, seed=i)) for i in range(n)]
    return torch.stack([load_looks(each, b"", (View(size),), Decoding())[0] for each in content])


def by_torchvision(weights: Weights, images: torch.Tensor) -> dict[int, np.ndarray]:
    """Return the means of the stages' maps, as torchvision extracts them."""
    network = resnet18(weights=None)
    network.load_state_dict({**network.state_dict(), **dict(weights.tensors)})
    nodes = {f"layer{number}": str(number) for number in ALL}
    extractor = create_feature_extractor(network.eval(), nodes)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (RESNET18.mean, RESNET18.std))
    with torch.no_grad():
        maps = extractor((images / 255 - mean) / std)
    return {int(name): found.mean(dim=(2, 3)).numpy() for name, found in maps.items()}


@pytest.mark.parametrize("size", [224, 416])
def test_means_of_stages_are_those_of_torchvisions_feature_extraction(weights: Weights, size: int) -> None:
    images = looks(size, 2)
    expected = by_torchvision(weights, images)
    for layers in ((2,), ALL):
        found = Backbone(weights, layers=layers).embed(images).numpy()
        columns = RESNET18.columns_of(layers)
        assert found.shape == (2, RESNET18.dim_of(layers))
        assert found.dtype == np.float32
        for number in layers:
            scale = np.abs(expected[number]).max()
            np.testing.assert_allclose(found[:, columns[number]] / scale, expected[number] / scale, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [224, 448])
def test_columns_of_the_last_stage_are_the_default_embedding_bit_for_bit(
    weights: Weights, precision: str, size: int
) -> None:
    images = looks(size)
    alone = Backbone(weights, precision=precision).embed(images)
    found = Backbone(weights, precision=precision, layers=(3, 4)).embed(images)
    assert torch.equal(found[:, RESNET18.columns_of((3, 4))[4]], alone)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_embeddings_of_layers_do_not_depend_on_batch_mates(weights: Weights, precision: str) -> None:
    backbone = Backbone(weights, precision=precision, layers=(2, 3, 4))
    images = looks(320)  # groups of three
    together = backbone.embed(images)
    assert torch.equal(backbone.embed(images[[1]])[0], together[1])
    assert torch.equal(backbone.embed(images.flip(0)), together.flip(0))


def test_bfloat16_is_near_float32_in_every_layer(weights: Weights) -> None:
    images = looks(448)
    exact = Backbone(weights, layers=ALL).embed(images)
    found = Backbone(weights, precision="bfloat16", layers=ALL).embed(images)
    for columns in RESNET18.columns_of(ALL).values():
        cosine = torch.nn.functional.cosine_similarity(found[:, columns], exact[:, columns])
        assert cosine.min() > 0.999


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_int8_has_layers_and_other_sizes(weights: Weights) -> None:
    from hoarfrost.features.encoder.backbone.int8 import calibrated_precision

    precision = calibrated_precision(weights, looks(224, 8))
    backbone = Backbone(weights, precision=precision, layers=(3, 4))
    columns = RESNET18.columns_of((3, 4))
    for size in (224, 448):
        images = looks(size, 3)
        found, exact = backbone.embed(images), Backbone(weights, layers=(3, 4)).embed(images)
        assert found.shape == (3, 768)
        for each in columns.values():
            assert torch.nn.functional.cosine_similarity(found[:, each], exact[:, each]).min() > 0.99
        alone = Backbone(weights, precision=precision).embed(images)
        assert torch.equal(found[:, columns[4]], alone)
        assert torch.equal(torch.cat([backbone.embed(images[[i]]) for i in range(3)]), found)


def test_means_of_the_feature_maps_are_the_embedding(weights: Weights) -> None:
    backbone = Backbone(weights, layers=(3, 4))
    for size, cells in ((224, 7), (448, 14)):
        images = looks(size)
        maps = backbone.feature_maps(images)
        assert [tuple(found.shape[1:]) for found in maps] == [(256, 2 * cells, 2 * cells), (512, cells, cells)]
        means = torch.cat([found.mean(dim=(2, 3)) for found in maps], 1)
        torch.testing.assert_close(means, backbone.embed(images), rtol=1e-5, atol=1e-5)


def test_layers_are_counted_and_checked() -> None:
    assert [RESNET18.dim_of(layers) for layers in ((), (4,), (3, 4), ALL)] == [512, 512, 768, 960]
    assert RESNET18.columns_of((4, 3)) == {3: slice(0, 256), 4: slice(256, 768)}
    assert RESNET18.checked_layers((4, 3, 3)) == (3, 4)
    assert RESNET18.checked_layers((4,)) == RESNET18.checked_layers(()) == ()
    with pytest.raises(EncoderError, match=r"--layers: the encoder ResNet18 has no layer 0\. Its layers: 1, 2, 3, 4\."):
        RESNET18.checked_layers((0, 4))


def test_groups_of_larger_images_have_as_many_pixels() -> None:
    backbone = Backbone(load_weights("random:0"))
    assert [backbone.group_for(size) for size in (224, 448, 96, 2048)] == [8, 2, 43, 1]
