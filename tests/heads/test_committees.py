"""Members of several kinds, folds and weights are saved, read and used as one head: the weighted mean of them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from hoarfrost import open_predictor
from hoarfrost.heads.committee import Committee, weighted_mean
from hoarfrost.heads.files import SavedHead, head_bytes, read_head
from hoarfrost.heads.layers import Standardise, rounded
from hoarfrost.inference.predict import Predictor
from tests.support.saved_heads import MIXED, embeddings, member, saved_head

TASKS = {
    "two classes": saved_head(),
    "three classes": saved_head(names=("a", "b", "c")),
    "labels": saved_head(names=("mass", "a|b", "c"), multilabel=True),
}


def by_hand(head: SavedHead, x: np.ndarray) -> np.ndarray:
    """Return the weighted mean of the members' probabilities, one member and one row at a time."""
    found = np.zeros((len(x), len(head.names)))
    for one in head.members:
        exact = copy.deepcopy(one.module).double()
        for i, row in enumerate(torch.from_numpy(x).double()):
            logits = exact(row[None])[0].detach().float().double()
            found[i] += one.weight * (logits.sigmoid() if head.is_multilabel else logits.softmax(0)).numpy()
    return found


@pytest.fixture(params=TASKS)
def head(request: pytest.FixtureRequest) -> SavedHead:
    return TASKS[request.param]


def written(head: SavedHead, folder: Path) -> Path:
    path = folder / "head.safetensors"
    path.write_bytes(head_bytes(head))
    return path


def test_a_committee_is_read_as_it_was_written(head: SavedHead, tmp_path: Path) -> None:
    path = written(head, tmp_path)
    found = read_head(path)
    assert (found.name, found.names, found.is_multilabel) == (head.name, head.names, head.is_multilabel)
    for one, wanted in zip(found.members, head.members, strict=True):
        assert (one.spec, one.seed, one.fold, one.weight) == (wanted.spec, wanted.seed, wanted.fold, wanted.weight)
        state = one.module.state_dict()
        assert all(torch.equal(state[key], value) for key, value in wanted.module.state_dict().items())
    assert head_bytes(found) == path.read_bytes()


def test_its_probabilities_are_the_weighted_mean_of_its_members(head: SavedHead, tmp_path: Path) -> None:
    x = embeddings(9)
    found = open_predictor(written(head, tmp_path)).predict(x).probabilities
    np.testing.assert_allclose(found, by_hand(head, x), rtol=0, atol=1e-12)


def test_certain_members_make_no_probability_above_one() -> None:
    for n in range(1, 60):
        assert weighted_mean([np.ones((3, 2))] * n, [1 / n] * n).max() <= 1


def test_an_image_does_not_depend_on_the_others(head: SavedHead) -> None:
    predictor, x = Predictor(head), embeddings(1_500)
    whole = predictor.predict(x).probabilities
    for first, size in ((0, 1), (1_020, 9), (1_499, 1), (700, 333)):
        part = predictor.predict(x[first : first + size]).probabilities
        assert (part == whole[first : first + size]).all()


def test_its_logits_are_those_of_its_probabilities(head: SavedHead) -> None:
    x, committee = torch.from_numpy(embeddings(9)), head.committee
    logits = committee(x).detach()
    found = (logits.sigmoid() if head.is_multilabel else logits.softmax(1)).numpy()
    np.testing.assert_allclose(found, by_hand(head, x.numpy()), rtol=0, atol=1e-5)


def test_probabilities_near_zero_keep_their_logarithm() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, -200.0]]).expand(len(x), 2)

    logits = Committee([Constant(), Constant()], [0.25, 0.75], is_multilabel=False)(torch.zeros(1, 4))
    assert logits[0].tolist() == pytest.approx([0, -200], abs=1e-6)


def test_predicting_leaves_the_head_as_it_is() -> None:
    head = saved_head()
    before = head_bytes(head)
    Predictor(head).predict(embeddings(3))
    assert head_bytes(head) == before
    assert all(value.dtype == torch.float32 for one in head.members for value in one.module.state_dict().values())


@pytest.mark.parametrize("weights", [(), (0.5, 0.4), (1.0, 0.0), (1.5, -0.5), (float("nan"), 0.5)])
def test_weights_that_are_no_mean_are_refused(weights: tuple[float, ...]) -> None:
    of = [member("linear", weight) for weight in weights]
    with pytest.raises(ValueError, match="above zero and have the sum one"):
        replace(saved_head(), members=tuple(of))


# -- half the bytes -----------------------------------------------------------------------------------------------------


def test_rounded_weights_take_half_the_bytes_and_come_back_exactly(tmp_path: Path) -> None:
    head = saved_head()
    small = replace(head, members=tuple(replace(one, module=rounded(one.module)) for one in head.members))
    assert len(head_bytes(small)) < 0.55 * len(head_bytes(head))
    path = written(small, tmp_path)
    with safe_open(path, "pt") as file:
        dtypes = {
            name: file.get_tensor(name).dtype
            for name in file.keys()  # noqa: SIM118 - not a mapping
            if name.startswith("member")
        }
    assert {dtype for name, dtype in dtypes.items() if ".1." in name} == {torch.float16}
    assert {dtype for name, dtype in dtypes.items() if ".0.mean" in name} == {torch.float32}
    for one, wanted in zip(read_head(path).members, small.members, strict=True):
        state = one.module.state_dict()
        assert all(torch.equal(state[key], value) for key, value in wanted.module.state_dict().items())
    np.testing.assert_allclose(by_hand(small, embeddings(5)), by_hand(head, embeddings(5)), atol=2e-3)


@pytest.mark.parametrize("text", MIXED)
def test_rounding_changes_weights_alone_and_only_in_a_copy(text: str) -> None:
    module = member(text).module
    before = copy.deepcopy(module.state_dict())
    found = rounded(module).state_dict()
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    for key, value in found.items():
        wanted = before[key] if key.startswith("0.") else before[key].half().float()
        assert torch.equal(value, wanted)


def test_weights_beyond_float16_stay_in_float32() -> None:
    module = nn.Sequential(Standardise(torch.rand(2), torch.rand(2) + 1), nn.Sequential(nn.Linear(2, 2)))
    module[1][0].weight.data.fill_(1.2345e5)  # type: ignore[index, union-attr]
    assert torch.equal(rounded(module).state_dict()["1.0.weight"], torch.full((2, 2), 1.2345e5))


# -- slopes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["none", "sqrt", "unit"])
def test_slopes_are_those_of_the_standardisation(transform: str) -> None:
    """From the embedding that is standardised to zero, the slope leads to the embedding's own standardised value."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    x[0, :3] = 0
    mean, std = torch.randn(8, generator=generator, dtype=torch.float64), torch.rand(8, dtype=torch.float64) + 0.1
    mean[2] = 0
    layer = Standardise(mean, std, transform)
    reference = {"none": mean, "sqrt": mean * mean.abs(), "unit": mean * x.norm(dim=1, keepdim=True)}[transform]
    found = layer.slope(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found * (x - reference), layer(x))
