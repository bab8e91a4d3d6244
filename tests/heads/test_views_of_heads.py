"""A committee whose members look at some views and layers: its probabilities, its file, and files that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hoarfrost import open_predictor
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.heads.committee import Committee
from hoarfrost.heads.files import SavedHead, SavedMember, head_bytes, read_head
from hoarfrost.heads.layers import Standardise, chosen_columns, transformed
from hoarfrost.heads.specs import parse_head
from hoarfrost.heads.views import columns_of, member_views
from hoarfrost.inference.predict import Predictor
from tests.heads.test_head_files import rewritten
from tests.support.caches import HEADER
from tests.support.saved_heads import MIXED, embeddings, members, saved_head

VIEWS = ("224", "224:flip", "448", "448:flip")
LAYERS = (3, 4)
COLUMNS = RESNET18.columns_of(LAYERS)
WITH_LAYERS = replace(
    HEADER, fingerprint=replace(HEADER.fingerprint, layers=LAYERS), dim=RESNET18.dim_of(LAYERS)
).of_views(VIEWS)
LOOKING = (
    "mlp:8,views=224+224:flip",
    "mlp:8,layers=4,views=448+448:flip",
    "linear,layers=3,views=448",
    "quadratic,C=1,views=224+448",
    "logistic,C=1,transform=unit",
    "linear",
)


def looking(text: str, weight: float, seed: int, n_classes: int) -> SavedMember:
    """Return a member that looks at views and layers, with drawn weights."""
    generator, spec = torch.Generator().manual_seed(seed), parse_head(text)
    columns = columns_of(spec.layer_numbers, COLUMNS)
    dim = sum(end - first for first, end in columns) or WITH_LAYERS.dim
    layers = spec.build(dim, n_classes)
    with torch.no_grad():
        for weights in layers.parameters():
            weights.normal_(std=weights.shape[-1] ** -0.5, generator=generator)
    mean, std = torch.rand(dim, generator=generator), torch.rand(dim, generator=generator) + 0.2
    module = nn.Sequential(Standardise(mean, std, spec.transform, columns), layers).eval()
    return SavedMember(spec, seed, seed % 3, weight, module)


def viewed(names: tuple[str, ...] = ("benign", "malignant"), *, multilabel: bool = False) -> SavedHead:
    raw = np.arange(1.0, len(LOOKING) + 1)
    of = [
        looking(text, weight, i, len(names))
        for i, (text, weight) in enumerate(zip(LOOKING, (raw / raw.sum()).tolist(), strict=True))
    ]
    found = saved_head(of, names, multilabel=multilabel)
    wide = np.concatenate([found.novelty.mean[:256], found.novelty.mean])
    k = len(found.novelty.directions)
    directions = np.concatenate([np.zeros((k, 256), np.float32), found.novelty.directions], axis=1)
    return replace(found, header=WITH_LAYERS, novelty=replace(found.novelty, mean=wide, directions=directions))


HEADS = {
    "two classes": viewed(),
    "three classes": viewed(("a", "b", "c")),
    "labels": viewed(("mass", "a|b", "c"), multilabel=True),
}


def drawn(n: int = 6, seed: int = 3) -> np.ndarray:
    """Draw embeddings (n, V, D) that are never negative."""
    x = np.random.default_rng(seed).normal(0.3, 0.6, (n, len(VIEWS), WITH_LAYERS.dim))
    return np.maximum(x, 0).astype(np.float32)


def by_hand(head: SavedHead, x: np.ndarray) -> np.ndarray:
    """Return the weighted mean over members and views, one member, image and view at a time."""
    found = np.zeros((len(x), len(head.names)))
    for one in head.members:
        standardise, layers = one.module.double()  # type: ignore[misc]
        names = one.spec.views.split("+") if one.spec.views else VIEWS
        numbers = [int(n) for n in one.spec.layers.split("+")] if one.spec.layers else LAYERS
        for i, image in enumerate(x.astype(np.float64)):
            parts = [np.concatenate([image[VIEWS.index(name)][COLUMNS[n]] for n in numbers]) for name in names]
            if one.spec.KIND in {"logistic", "quadratic"}:
                parts = [np.mean(parts, axis=0)]
            for part in parts:
                z = (transformed(torch.from_numpy(part), one.spec.transform) - standardise.mean) / standardise.std
                logits = layers(z[None])[0].detach().float().double()
                p = logits.sigmoid() if head.is_multilabel else logits.softmax(0)
                found[i] += one.weight / len(parts) * p.numpy()
        one.module.float()
    return found


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> SavedHead:
    return HEADS[request.param]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a head file of views and layers."""
    path = tmp_path / "head.safetensors"
    path.write_bytes(head_bytes(HEADS["two classes"]))
    return path


# -- probabilities -----------------------------------------------------------------------------------------------------


def test_its_probabilities_are_the_weighted_mean_over_members_and_views(head: SavedHead) -> None:
    x, committee = drawn(), head.committee.exact()
    wanted = by_hand(head, x)
    np.testing.assert_allclose(committee.probabilities(torch.from_numpy(x)), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(Predictor(head).predict(x).probabilities, wanted, rtol=0, atol=1e-12)
    logits = committee(torch.from_numpy(x).double())
    found = logits.sigmoid() if head.is_multilabel else logits.softmax(1)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)


def test_an_images_probabilities_do_not_depend_on_the_others(head: SavedHead) -> None:
    x, committee = torch.from_numpy(drawn()), head.committee.exact()
    together = committee.probabilities(x)
    assert np.array_equal(together, np.concatenate([committee.probabilities(one[None]) for one in x]))


def test_with_one_view_it_is_the_committee_of_before_bit_for_bit() -> None:
    one = saved_head(members(MIXED))
    x = torch.from_numpy(embeddings(9)).double()
    modules, weights = [m.module for m in one.members], [m.weight for m in one.members]
    before = Committee(modules, weights, is_multilabel=False).exact()
    now = one.committee.exact()
    for given in (x, x[:, None]):
        assert np.array_equal(now.probabilities(given), before.probabilities(x))
        assert torch.equal(now(given), before(x))


def test_columns_are_those_of_the_layers_in_their_order() -> None:
    x = torch.arange(WITH_LAYERS.dim)[None]
    assert columns_of((), COLUMNS) == columns_of((3, 4), COLUMNS) == ()
    assert chosen_columns(x, columns_of((4,), COLUMNS))[0].tolist() == list(range(256, 768))
    assert chosen_columns(x, columns_of((4, 3), COLUMNS))[0].tolist() == [*range(256, 768), *range(256)]
    assert member_views(parse_head("linear,views=448+224"), VIEWS) == ((2, 0), False)
    assert member_views(parse_head("logistic"), VIEWS) == ((0, 1, 2, 3), True)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_with_views_and_layers_is_read_as_it_was_written(head: SavedHead, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(head_bytes(head))
    found = read_head(path)
    assert head_bytes(found) == head_bytes(head) == path.read_bytes()
    assert (found.views, found.header.fingerprint.layers, found.header.dim) == (VIEWS, LAYERS, 768)
    assert [one.spec for one in found.members] == [one.spec for one in head.members]
    x = drawn()
    assert np.array_equal(Predictor(found).predict(x).probabilities, Predictor(head).predict(x).probabilities)


def test_a_file_of_version_3_opens_and_predicts_as_it_did(tmp_path: Path) -> None:
    head = saved_head(members(MIXED))
    for name in ("old", "new"):
        (tmp_path / f"{name}.safetensors").write_bytes(head_bytes(head))

    def as_before(description: dict[str, Any], _: object) -> None:
        description["format_version"] = 3
        del description["views"], description["embeddings"]["layers"]

    rewritten(tmp_path / "old.safetensors", as_before)
    found = read_head(tmp_path / "old.safetensors")
    assert (found.views, found.header.views) == (("224",), ())
    assert head_bytes(found) == head_bytes(head)
    old, new = (open_predictor(tmp_path / f"{name}.safetensors").predict(embeddings(5)) for name in ("old", "new"))
    assert np.array_equal(old.probabilities, new.probabilities)


def member_of(text: str) -> Any:
    return lambda d, _: d["members"][0].update(head=text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, _: d.update(views=["224", "224:flip", "448"]), "the view 448:flip is not among those"),
        (lambda d, _: d.update(views=[*VIEWS, "224:spin"]), "'spin' is not known"),
        (
            lambda d, _: d.update(views=[*VIEWS[:3], "448:crop=0.8571428571428571"]),
            "damaged: its views are not stated by",
        ),
        (lambda d, _: d.update(views=["224", *VIEWS]), "damaged: its views are not stated by"),
        (lambda d, _: d.update(views="224"), "the size must be a multiple of 32"),
        (member_of("mlp:8,views=224:crop"), "the view 224:crop is not among those"),
        (member_of("mlp:8,layers=2"), "there are no embeddings of layer 2"),
        (member_of("mlp:8,layers=4"), r"member0\.0\.mean is not a finite float32 or float16 tensor of shape \(512,\)"),
        (lambda d, _: d["embeddings"].update(layers=[2, 4]), "its fingerprint does not match"),
        (lambda d, _: d.update(n_inputs=512), "damaged: it has embeddings of 512 numbers, and layers of 768"),
    ],
)
def test_a_file_whose_views_or_layers_do_not_fit_is_refused(path: Path, change: Any, message: str) -> None:
    with pytest.raises(HoarfrostError, match=message):
        read_head(rewritten(path, change))


@pytest.mark.parametrize("shape", [(3, 768), (3, 3, 768), (3, 4, 512), (3, 5, 768)])
def test_embeddings_of_other_views_or_layers_are_refused(path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, HoarfrostError)):
        open_predictor(path).predict(np.ones(shape, np.float32))
