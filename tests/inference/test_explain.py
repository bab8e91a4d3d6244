"""Maps sum to the evidence, lie where the backbone looked, and are drawn so; examples are other patients' training images."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.backbone.network import Network
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.heads.committee import Committee
from hoarfrost.heads.files import head_bytes
from hoarfrost.heads.layers import Standardise, transformed
from hoarfrost.inference.explain.cases import TrainingExamples
from hoarfrost.inference.explain.drawing import Shown, card, legend, overlay, sheet_of
from hoarfrost.inference.explain.maps import LookMaps, evidence, evidence_maps, upsampled
from tests.support.builders import picture
from tests.support.saved_heads import MIXED, members, saved_head

HEADS = ("linear", "mlp:16", "mlp:8x3", "quadratic,C=1")
TRANSFORMS = ("none", "sqrt", "unit")
EXACT = [f"{kind},transform={name}" for kind in ("linear", "logistic,C=1") for name in TRANSFORMS]

SIZE = RESNET18.size


def features(n: int = 3, seed: int = 0) -> npt.NDArray[np.float32]:
    """Draw feature maps (n, 512, 7, 7) as after a ReLU; some features are zero in all cells."""
    drawn = np.random.default_rng(seed).normal(0.3, 1, (n, 512, 7, 7))
    drawn[:, :9] = -1
    return np.maximum(drawn, 0).astype(np.float32)


def head(*specs: str, n_classes: int = 3, multilabel: bool = False) -> Committee:
    """Return a head of members with unequal weights."""
    names = tuple(map(str, range(n_classes)))
    return saved_head(members(specs, n_classes=n_classes), names, multilabel=multilabel).committee.exact()


def pooled(x: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(x).double().mean((2, 3))


# -- the maps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("spec", HEADS)
@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_map_sums_to_the_evidence_in_the_heads_probabilities(spec: str, n_classes: int, transform: str) -> None:
    x, committee = features(), head(f"{spec},transform={transform}", n_classes=n_classes)
    logarithms = np.log(committee.probabilities(pooled(x)))
    for number in range(n_classes):
        maps = evidence_maps(committee, [LookMaps((x,))], [number] * 3)
        assert maps.shape == (3, 7, 7)
        others = np.delete(logarithms, number, axis=1).mean(axis=1)
        np.testing.assert_allclose(maps.sum((1, 2)), logarithms[:, number] - others, rtol=0, atol=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_map_of_a_committee_sums_to_the_evidence_in_its_mean_probabilities(multilabel: bool) -> None:
    x, committee = features(), head(*MIXED, n_classes=2, multilabel=multilabel)
    p = committee.probabilities(pooled(x))[:, 1]
    maps = evidence_maps(committee, [LookMaps((x,))], [1] * 3)
    np.testing.assert_allclose(maps.sum((1, 2)), np.log(p / (1 - p)), rtol=0, atol=1e-5)


def test_each_image_has_the_map_of_its_own_class() -> None:
    x, committee = features(), head(*MIXED)
    together = evidence_maps(committee, [LookMaps((x,))], [2, 0, 1])
    for i, number in enumerate((2, 0, 1)):
        alone = evidence_maps(committee, [LookMaps((x[i : i + 1],))], [number])[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-10)


def slope_at(mean: float, x: float, length: float, transform: str) -> float:
    """Return the slope of a transform, one number at a time."""
    if transform == "none":
        return 1.0
    if transform == "unit":
        return 1 / length
    return (math.sqrt(x) - mean) / (x - mean**2)  # the mean is that of square roots


@pytest.mark.parametrize("spec", EXACT)
def test_a_linear_map_is_weight_times_slope_times_activation_and_an_even_share_of_the_rest(spec: str) -> None:
    x, committee = features(1), head(spec, n_classes=2)
    ((standardise, layers),) = committee.parts()
    mean, std = (standardise.get_buffer(name).numpy() for name in ("mean", "std"))
    weight, bias = (part.detach().numpy() for part in layers.parameters())
    embedding, transform = pooled(x)[0].numpy(), standardise.transform
    length = float(np.linalg.norm(embedding))
    slope = np.array([slope_at(m, e, length, transform) for m, e in zip(mean, embedding, strict=True)])
    reference = {"none": mean, "sqrt": mean**2, "unit": mean * length}[transform]
    expected = np.zeros((7, 7))
    for i in range(7):
        for j in range(7):
            z = (x[0, :, i, j].astype(np.float64) - reference) * slope / std
            expected[i, j] = ((weight[1] - weight[0]) @ z + bias[1] - bias[0]) / 49
    np.testing.assert_allclose(evidence_maps(committee, [LookMaps((x,))], [1])[0], expected, atol=1e-10)


@pytest.mark.parametrize("spec", [*HEADS, "mixed"])
def test_without_transform_the_map_is_gradient_times_activation_on_the_feature_map(spec: str) -> None:
    specs = [f"{one},transform=none" for one in (HEADS if spec == "mixed" else (spec,))]
    x, committee = features(1), head(*specs, n_classes=2)
    maps = torch.from_numpy(x).double().requires_grad_()
    logits = committee(maps.mean((2, 3)))[0]
    (gradient,) = torch.autograd.grad(logits[1] - logits[0], maps)
    expected = (gradient[0] * maps[0]).sum(0).detach()
    constant = (logits[1] - logits[0] - expected.sum()).item()
    found = evidence_maps(committee, [LookMaps((x,))], [1])[0]
    np.testing.assert_allclose(found, expected.numpy() + constant / 49, atol=1e-12)


def test_explaining_leaves_the_head_as_it_is() -> None:
    saved = saved_head()
    before = head_bytes(saved)
    evidence_maps(saved.committee.exact(), [LookMaps((features(),))], [1] * 3)
    assert head_bytes(saved) == before
    assert all(value.requires_grad for one in saved.members for value in one.module.parameters())


def test_evidence_does_not_see_what_all_logits_have_in_common() -> None:
    logits, common = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 1, dtype=torch.float64)
    for number in range(4):
        one, other = (evidence(values, [number] * 2, multilabel=False) for values in (logits, logits + common))
        torch.testing.assert_close(one, other)


# -- where cells are ----------------------------------------------------------------------------------------------------


def test_a_cell_looks_at_the_image_around_32_pixels_times_its_place() -> None:
    network = Network(load_weights("random:0"))
    image = torch.full((1, 3, SIZE, SIZE), 90.0, requires_grad=True)
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    (maps,) = network.feature_maps(image + 20 * noise)
    for i, j in ((3, 3), (2, 4)):
        (gradient,) = torch.autograd.grad(maps[0, :, i, j].sum(), image, retain_graph=True)
        weight = gradient[0].square().sum(0)
        rows = (weight.sum(1) * torch.arange(SIZE)).sum() / weight.sum()
        columns = (weight.sum(0) * torch.arange(SIZE)).sum() / weight.sum()
        assert (float(rows), float(columns)) == pytest.approx((32 * i, 32 * j), abs=5)


def test_pooled_feature_maps_are_the_embeddings() -> None:
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = Backbone(load_weights("random:0"))
    (maps,) = backbone.feature_maps(images)
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


def examples(n: int = 40, transform: str = "sqrt") -> tuple[TrainingExamples, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 1, (n, 512)).astype(np.float32)
    names = [str(i) for i in range(n)]
    patients = [f"p{i // 2}" if i % 10 else "" for i in range(n)]
    standardise = standardisation(x, transform)
    return TrainingExamples(x, standardise, names, names, patients, [name.encode() for name in names]), x


def standardisation(x: npt.NDArray[np.float32], transform: str) -> Standardise:
    z = transformed(torch.from_numpy(x), transform)
    return Standardise(z.mean(0), z.std(0), transform)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_nearest_are_those_with_the_least_standardised_distance(transform: str) -> None:
    found, x = examples(transform=transform)
    query = np.random.default_rng(1).normal(2, 1, 512).astype(np.float32)
    standardise = standardisation(x, transform)
    z = standardise(torch.from_numpy(query)[None])
    distances = {str(i): float((standardise(torch.from_numpy(row)[None]) - z).norm()) for i, row in enumerate(x)}
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
