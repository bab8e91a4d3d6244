"""Maps sum to the logit, lie where the backbone looked, and are drawn so; examples are other patients' training images."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.backbone.network import Network
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.heads.specs import parse_head
from hoarfrost.heads.layers import Standardise
from hoarfrost.inference.explain.cases import TrainingExamples
from hoarfrost.inference.explain.drawing import Shown, card, legend, overlay, sheet_of
from hoarfrost.inference.explain.maps import evidence, logit_maps, upsampled
from tests.support.builders import picture

HEADS = ("linear", "mlp:16", "mlp:8x3")

SIZE = RESNET18.size


def features(n: int = 3, seed: int = 0) -> npt.NDArray[np.float32]:
    """Draw feature maps (n, 512, 7, 7) as after a ReLU."""
    drawn = np.random.default_rng(seed).normal(0.3, 1, (n, 512, 7, 7))
    return np.maximum(drawn, 0).astype(np.float32)


def head(spec: str, n_classes: int = 3, seed: int = 0) -> nn.Module:
    """Make a head with standardisation, as training leaves it."""
    torch.manual_seed(seed)
    standardise = Standardise(torch.rand(512), torch.rand(512) + 0.2)
    return nn.Sequential(standardise, parse_head(spec).build(512, n_classes)).eval()


def pooled(x: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(x).double().mean((2, 3)).float()


# -- the maps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [1, 2, 5])
@pytest.mark.parametrize("spec", HEADS)
def test_the_map_sums_to_the_logit(spec: str, n_classes: int) -> None:
    x, module = features(), head(spec, n_classes)
    maps = logit_maps([module], x)
    assert maps.shape == (3, n_classes, 7, 7)
    logits = module(pooled(x)).detach().numpy()
    np.testing.assert_allclose(maps.sum((2, 3)), logits, rtol=0, atol=2e-5)


def test_maps_of_several_seeds_are_averaged() -> None:
    x, modules = features(), [head("linear", seed=0), head("linear", seed=1)]
    apart = [logit_maps([module], x) for module in modules]
    np.testing.assert_allclose(logit_maps(modules, x), (apart[0] + apart[1]) / 2, atol=1e-12)


def test_a_linear_map_is_weight_times_standardised_activation_and_an_even_share_of_the_bias() -> None:
    x, module = features(1), head("linear", 2)
    standardise, layers = module
    mean, std = (standardise.get_buffer(name).double().numpy() for name in ("mean", "std"))
    weight, bias = (part.detach().double().numpy() for part in layers[0].parameters())
    expected = np.zeros((2, 7, 7))
    for c in range(2):
        for i in range(7):
            for j in range(7):
                z = (x[0, :, i, j].astype(np.float64) - mean) / std
                expected[c, i, j] = (weight[c] @ z + bias[c]) / 49
    np.testing.assert_allclose(logit_maps([module], x)[0], expected, atol=1e-10)


@pytest.mark.parametrize("spec", HEADS)
def test_the_map_is_gradient_times_activation_on_the_feature_map(spec: str) -> None:
    x, module = features(1), head(spec, 2).double()
    maps = torch.from_numpy(x).double().requires_grad_()
    logits = module(maps.mean((2, 3)))
    mean = module[0].get_buffer("mean")[:, None, None]  # type: ignore[index, operator, union-attr]
    for c in range(2):
        (gradient,) = torch.autograd.grad(logits[0, c], maps, retain_graph=True)
        expected = (gradient[0] * (maps[0] - mean)).sum(0).detach()
        constant = (logits[0, c] - expected.sum()).item()
        found = logit_maps([module], x)[0, c]
        np.testing.assert_allclose(found, expected.numpy() + constant / 49, atol=1e-12)


def test_explaining_leaves_the_head_as_it_is() -> None:
    module = head("mlp:16")
    logit_maps([module], features())
    assert all(value.dtype == torch.float32 and value.requires_grad for value in module.parameters())


def test_evidence_of_two_classes_sums_to_the_logarithm_of_the_odds() -> None:
    x, module = features(), head("mlp:16", 2)
    p = module(pooled(x)).detach().double().softmax(1).numpy()
    found = evidence(logit_maps([module], x), 1, multilabel=False)
    np.testing.assert_allclose(found.sum((1, 2)), np.log(p[:, 1] / p[:, 0]), atol=1e-5)


def test_evidence_of_a_label_sums_to_the_logarithm_of_its_odds() -> None:
    x, module = features(), head("linear", 3)
    p = module(pooled(x)).detach().double().sigmoid().numpy()
    found = evidence(logit_maps([module], x), 2, multilabel=True)
    np.testing.assert_allclose(found.sum((1, 2)), np.log(p[:, 2] / (1 - p[:, 2])), atol=1e-5)


def test_evidence_does_not_see_what_all_logits_have_in_common() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 4, 7, 7))
    for number in range(4):
        common = np.random.default_rng(1).normal(size=(2, 1, 7, 7))
        one, other = (evidence(values, number, multilabel=False) for values in (maps, maps + common))
        np.testing.assert_allclose(one, other, atol=1e-12)


# -- where cells are ----------------------------------------------------------------------------------------------------


def test_a_cell_looks_at_the_image_around_32_pixels_times_its_place() -> None:
    network = Network(load_weights("random:0"))
    image = torch.full((1, 3, SIZE, SIZE), 90.0, requires_grad=True)
    maps = network.feature_maps(image + 20 * torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    for i, j in ((3, 3), (2, 4)):
        (gradient,) = torch.autograd.grad(maps[0, :, i, j].sum(), image, retain_graph=True)
        weight = gradient[0].square().sum(0)
        rows = (weight.sum(1) * torch.arange(SIZE)).sum() / weight.sum()
        columns = (weight.sum(0) * torch.arange(SIZE)).sum() / weight.sum()
        assert (float(rows), float(columns)) == pytest.approx((32 * i, 32 * j), abs=5)


def test_pooled_feature_maps_are_the_embeddings() -> None:
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = Backbone(load_weights("random:0"))
    maps = backbone.feature_maps(images)
    assert maps.shape == (3, 512, 7, 7)
    torch.testing.assert_close(maps.mean((2, 3)), backbone.embed(images), rtol=1e-5, atol=1e-6)


def test_a_network_that_gives_embeddings_alone_has_no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(load_weights("random:0"))
    monkeypatch.setattr(backbone, "_forward", lambda images: images)
    with pytest.raises(ValueError, match="8-bit integers has no feature maps"):
        backbone.feature_maps(torch.zeros((1, 3, SIZE, SIZE), dtype=torch.uint8))


@pytest.mark.parametrize("size", [(224, 224), (100, 300), (30, 7)])
def test_maps_are_drawn_bilinearly_between_the_cells_centres(size: tuple[int, int]) -> None:
    cells = np.random.default_rng(0).normal(size=(7, 7))
    found = upsampled(cells, *size, RESNET18)
    assert found.shape == size

    def along(place: float) -> tuple[int, float]:
        place = min(max(place / 32, 0.0), 6.0)
        return min(int(place), 5), place - min(int(place), 5)

    for y, x in np.random.default_rng(1).integers(0, size, (50, 2)).tolist():
        (i, s), (j, t) = along((y + 0.5) * 224 / size[0] - 0.5), along((x + 0.5) * 224 / size[1] - 0.5)
        top, bottom = (cells[k, j] * (1 - t) + cells[k, j + 1] * t for k in (i, i + 1))
        assert found[y, x] == pytest.approx(top * (1 - s) + bottom * s)


def test_the_cells_centres_have_the_cells_values() -> None:
    cells = np.random.default_rng(0).normal(size=(7, 7))
    np.testing.assert_allclose(upsampled(cells, SIZE, SIZE, RESNET18)[::32, ::32], cells, atol=1e-12)


# -- pictures -----------------------------------------------------------------------------------------------------------


def test_overlay_is_red_for_and_blue_against_and_leaves_the_rest() -> None:
    cells = np.zeros((7, 7))
    cells[1, 1], cells[5, 5] = 2.0, -2.0
    image = np.full((SIZE, SIZE), 120, np.uint8)
    found = overlay(image, cells, RESNET18, SIZE).astype(int)
    red, blue, left = found[32, 32], found[160, 160], found[96, 96]
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    assert left.tolist() == [120, 120, 120]


def test_a_map_of_nothing_leaves_the_image() -> None:
    image = np.asarray(picture(60, 40).convert("L"))
    found = overlay(image, np.zeros((7, 7)), RESNET18, 60)
    assert (found == image[..., None]).all()


def test_legend_goes_from_blue_over_grey_to_red() -> None:
    bar = legend(101)[0].astype(int)
    assert bar[0, 2] > bar[0, 0] + 80
    assert bar[50].tolist() == [128, 128, 128]
    assert bar[-1, 0] > bar[-1, 2] + 80


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (28, 28), (300, 200, 3)])
def test_cards_take_images_of_any_shape(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    lines = ("long/" * 99, "gr\udcfcn\n: 0.5")
    examples = [(pixels, ("a", "b", "long/" * 30))] * 10
    shown = Shown(pixels, np.eye(7), RESNET18, lines, "gr\udcfcn", "odds", examples)
    assert card(shown).shape[2] == 3
    assert sheet_of([shown] * 5).shape[2] == 3


# -- by example ---------------------------------------------------------------------------------------------------------


def examples(n: int = 40) -> tuple[TrainingExamples, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 1, (n, 512)).astype(np.float32)
    mean, std = x.mean(0), x.std(0)
    names = [str(i) for i in range(n)]
    patients = [f"p{i // 2}" if i % 10 else "" for i in range(n)]
    return TrainingExamples(x, mean, std, names, names, patients, [name.encode() for name in names]), x


def test_nearest_are_those_with_the_least_standardised_distance() -> None:
    found, x = examples()
    query = np.random.default_rng(1).normal(2, 1, 512).astype(np.float32)
    distances = {str(i): float(np.linalg.norm((row - query) / x.std(0))) for i, row in enumerate(x)}
    nearest = found.nearest(query, 4)
    assert [one.path for one in nearest] == sorted(distances, key=distances.__getitem__)[:4]
    assert [one.distance for one in nearest] == pytest.approx([distances[one.path] for one in nearest], rel=1e-4)


def test_neither_the_image_itself_nor_its_patient_is_an_example() -> None:
    found, x = examples()
    assert found.nearest(x[5], 1)[0].path == "5"
    assert found.nearest(x[5], 40, key=b"5")[0].path != "5"
    of_others = {one.path for one in found.nearest(x[5], 40, key=b"5", patient="p2")}
    assert {"4", "5"}.isdisjoint(of_others)
    assert len(of_others) == 38


def test_images_of_unknown_patients_are_no_patient() -> None:
    found, x = examples()
    assert len(found.nearest(x[0], 40, key=b"0", patient="")) == 39
