"""Torchvision's networks as encoders: each is the network that torchvision has, whatever is folded or renamed."""

import re

import pytest
import torch
from torch import nn

from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.backbone.int8 import calibrated_precision
from hoarfrost.features.encoder.backbone.network import frozen_layers
from hoarfrost.features.encoder.backbone.winograd import WinogradConv2d
from hoarfrost.features.encoder.families import encoder_from
from hoarfrost.features.encoder.registry import ENCODERS, EncoderSpec, unknown_encoder
from hoarfrost.features.errors import EncoderError

OTHERS = [name for name in ENCODERS if name not in {"resnet101", "resnet152"}]  # these two: as resnet50, but longer
LAST = {"densenet121": "classifier", "vit_b_16": "heads", "swin_t": "head", "convnext_tiny": "classifier"}


def torchvisions(name: str) -> nn.Module:
    """Return torchvision's own network by seed 0, its classifier left out."""
    from torchvision import models

    torch.manual_seed(0)
    network: nn.Module = getattr(models, name)(weights=None).eval()
    setattr(network, LAST.get(name, "fc"), nn.Flatten())
    for parameter, values in network.named_parameters():
        if parameter.endswith("layer_scale"):  # 1e-6 would hide what the branches do
            nn.init.ones_(values)
    return network


def pixels(n: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(images: torch.Tensor, encoder: EncoderSpec) -> torch.Tensor:
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (encoder.mean, encoder.std))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("name", OTHERS)
def test_embeddings_and_maps_are_those_of_torchvisions_network(name: str, tmp_path: object) -> None:
    encoder, network = ENCODERS[name], torchvisions(name)
    expected_random = load_weights("random:0", encoder)
    state = {key: value for key, value in network.state_dict().items() if key in expected_random.tensors}
    for key, value in state.items():  # by seed 0 both have the same weights
        torch.testing.assert_close(expected_random.tensors[key], value, rtol=0, atol=0)
    # BatchNorm of a new network does nothing: with other statistics it shows what was folded wrongly.
    generator = torch.Generator().manual_seed(2)
    for values in (*network.parameters(), *network.buffers()):
        if values.ndim == 1 and values.is_floating_point():
            values.data += 0.2 * torch.rand(values.shape, generator=generator)
    path = f"{tmp_path}/net.pth"
    torch.save(network.state_dict(), path)
    weights = load_weights(path, encoder)
    with torch.no_grad():
        expected = network(normalised(pixels(), encoder))
    found = Backbone(weights).embed(pixels())
    assert found.shape == (2, encoder.dim)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    layers = encoder.checked_layers(stage.number for stage in encoder.stages)
    maps = Backbone(weights, layers=layers).feature_maps(pixels())
    for stage, of_stage in zip(encoder.stages, maps, strict=True):
        n_cells = encoder.size // stage.cell_pixels
        assert of_stage.shape == (2, stage.dim, n_cells, n_cells)
    if encoder.is_pooled:
        torch.testing.assert_close(maps[-1].mean((2, 3)), found, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ENCODERS)
def test_published_weights_are_those_of_torchvisions_own_entry(name: str) -> None:
    from torchvision.models import get_weight

    published = ENCODERS[name].published
    assert published is not None
    weights = get_weight(published.origin.removeprefix("torchvision "))
    assert weights.url == published.url
    assert round(weights.meta["_file_size"]) == pytest.approx(published.megabytes, abs=1)
    means = weights.transforms.keywords.get("mean", (0.485, 0.456, 0.406))
    assert tuple(means) == ENCODERS[name].mean


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_convolutions_are_folded_and_wide_ones_by_winograd(name: str) -> None:
    backbone = Backbone(load_weights("random:0", ENCODERS[name]))
    assert not [layer for layer in backbone.network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [layer for layer in backbone.network.modules() if isinstance(layer, WinogradConv2d)]


def test_densenets_norms_stay_because_they_come_before_the_convolutions() -> None:
    network = frozen_layers(load_weights("random:0", ENCODERS["densenet121"]))
    assert len([layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]) == 121


def test_the_published_file_of_densenet_has_names_of_old(tmp_path: object) -> None:
    state = torchvisions("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, f"{tmp_path}/old.pth")
    encoder = ENCODERS["densenet121"]
    assert load_weights(f"{tmp_path}/old.pth", encoder).sha256 == load_weights("random:0", encoder).sha256


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_radimagenets_files_have_numbers_for_names(tmp_path: object, prefix: str) -> None:
    network, encoder = torchvisions("resnet50"), ENCODERS["resnet50"]
    torch.save(
        {prefix + name: value for name, value in nn.Sequential(*list(network.children())[:9]).state_dict().items()},
        f"{tmp_path}/ResNet50.pt",
    )
    assert load_weights(f"{tmp_path}/ResNet50.pt", encoder).sha256 == load_weights("random:0", encoder).sha256


def test_resnet34_runs_in_int8() -> None:
    pytest.importorskip("openvino")
    weights = load_weights("random:0", ENCODERS["resnet34"])
    precision = calibrated_precision(weights, pixels())
    found = Backbone(weights, precision=precision).embed(pixels())
    exact = Backbone(weights).embed(pixels())
    cosine = torch.nn.functional.cosine_similarity(found, exact)
    assert float(cosine.min()) > 0.97


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "vit_b_16"])
def test_int8_is_refused_by_an_encoder_without_it(name: str) -> None:
    with pytest.raises(EncoderError, match=rf"{ENCODERS[name].title} does not run in int8\. Pass --precision auto"):
        ENCODERS[name].require_precision("int8")


def test_a_class_token_is_explained_only_where_patches_were_embedded() -> None:
    encoder = ENCODERS["vit_b_16"]
    with pytest.raises(EncoderError, match="is its class token, not the mean of a map.*--layers 12"):
        encoder.require_feature_map(())
    assert encoder.require_feature_map((12,)).cell_pixels == 16
    assert encoder.checked_layers((12,)) == (12,)
    assert encoder.stages_of(()) == ()


@pytest.mark.parametrize(("name", "meant"), [("ResNet50", "resnet50"), ("densenet", "densenet121"), ("swin", "swin_t")])
def test_an_unknown_name_is_an_error_with_the_closest_one(name: str, meant: str) -> None:
    with pytest.raises(
        EncoderError, match=rf"does not have the encoder '{name}'\. Did you mean {meant}\? It has: resnet18,"
    ):
        encoder_from(name)
    assert "Did you mean" not in str(unknown_encoder("qqq", ""))
