"""A head file is read as it was written, a damaged or foreign one is refused, and files of version 2 still open."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hoarfrost import open_predictor
from hoarfrost.features.errors import HoarfrostError, RunError
from hoarfrost.heads.files import DIGEST, FORMAT_VERSION, KEY, SavedHead, content_digest, head_bytes, read_head
from hoarfrost.heads.layers import Standardise
from tests.support.saved_heads import embeddings, member, saved_head

Damage = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


@pytest.fixture(scope="module")
def whole() -> bytes:
    """Return the content of a file with two members."""
    return head_bytes(saved_head([member("linear", 0.75), member("linear", 0.25, seed=1)], name="linear"))


@pytest.fixture
def head(whole: bytes, tmp_path: Path) -> Path:
    """Write a head file, which the test then damages."""
    path = tmp_path / "mine.safetensors"
    path.write_bytes(whole)
    return path


# -- damaged, foreign, newer --------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Damage) -> Path:
    """Write a head file again, after a change to its description or its tensors."""
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    change(description, tensors)
    description[DIGEST] = content_digest(description, tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(description)})
    return path


def of_member(**changes: object) -> Damage:
    """Return a damage of the first member's description."""
    return lambda d, _: d["members"][0].update(changes)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "newer": (lambda d, _: d.update(format_version=FORMAT_VERSION + 1), r"newer hoarfrost \(head format 5.*Upgrade"),
    "older": (lambda d, _: d.update(format_version=1), r"older hoarfrost \(head format 1\).*this needs only the cache"),
    "foreign": (lambda d, _: d.update(format="other"), "not a hoarfrost head, but 'other'"),
    "no classes": (lambda d, _: d.pop("classes"), "damaged: 'classes' is missing"),
    "equal classes": (lambda d, _: d.update(classes=["benign", "benign"]), "two of its classes have the same name"),
    "other inputs": (lambda d, _: d.update(n_inputs=7), r"member0\.0\.mean is not a finite float32 or float16 tensor of"),
    "other fingerprint": (lambda d, _: d.update(fingerprint="0" * 64), "its fingerprint does not match"),
    "other activation": (lambda d, _: d.update(activation="relu"), "damaged: 'relu' is missing"),
    "odd head": (of_member(head="tree"), "tree"),
    "another head": (of_member(head="mlp:8,dropout=0"), r"'member0\.1\.2\.weight' is missing|not a finite float32"),
    "huge head": (of_member(head="mlp:60000x2"), "more than 100,000,000|60000|not a finite|is missing"),
    "odd transform": (of_member(head="linear,transform=cube"), "transform must be"),
    "no members": (lambda d, _: d.update(members=[]), "does not describe a head on embeddings"),
    "more members": (lambda d, _: d["members"].append(d["members"][0]), r"'member2\.0\.mean' is missing"),
    "odd weights": (of_member(weight=0.5), "weights must be above zero and have the sum one"),
    "negative weight": (
        lambda d, _: [m.update(weight=w) for m, w in zip(d["members"], (1.5, -0.5), strict=True)], "weights must be above",
    ),
    "no weight": (lambda d, _: d["members"][1].pop("weight"), "weight"),
    "no temperature": (lambda d, _: d["validated"][0].update(temperatures=[]), "temperatures for image"),
    "odd temperature": (lambda d, _: d["validated"][0].update(temperatures=[-1.0]), "temperatures for image"),
    "no points": (lambda d, _: d["validated"][0].update(points=[]), "operating points for image"),
    "no threshold": (
        lambda d, _: d["validated"][0]["points"][0][0].update(threshold=None), "operating points for image",
    ),
    "nothing validated": (lambda d, _: d.update(validated=[]), "calibration for images are missing"),
    "odd novelty": (lambda d, _: d.update(novelty_rest=0.0), "variances for novelty must be above zero"),
    "no scores": (lambda _, t: t.pop("conformal.image.0.scores"), "'conformal.image.0.scores' is missing"),
    "unsorted": (lambda _, t: t.update({"distances.scores": t["distances.scores"].flip(0)}), "contains unsorted scores"),
    "NaN": (lambda _, t: t["member0.1.0.weight"].fill_(torch.nan), r"member0\.1\.0\.weight is not a finite float32"),
    "infinite halves": (
        lambda _, t: t.update({"member0.1.0.bias": torch.full((2,), torch.inf).half()}), r"member0\.1\.0\.bias is not a",
    ),
    "another shape": (
        lambda _, t: t.update({"member0.1.0.bias": torch.zeros(3)}), r"member0\.1\.0\.bias is not a finite float32",
    ),
    "another type": (
        lambda _, t: t.update({"member0.1.0.bias": torch.zeros(2, dtype=torch.int8)}), r"1\.0\.bias is not a finite float32",
    ),
    "no deviation": (lambda _, t: t["member1.0.std"].zero_(), r"member1\.0\.std must be above zero"),
    "no second member": (lambda _, t: t.pop("member1.1.0.bias"), r"'member1\.1\.0\.bias' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_file_that_is_not_as_it_was_written_is_refused_by_what_is_wrong(head: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    with pytest.raises(HoarfrostError, match=message):
        read_head(rewritten(head, change))


def test_file_of_a_backbone_is_no_head(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet18.safetensors")
    with pytest.raises(RunError, match=r"resnet18\.safetensors: not a hoarfrost head"):
        read_head(tmp_path / "resnet18.safetensors")


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=60)
def test_any_flipped_byte_and_any_cut_is_found(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, share: float, flipped: int
) -> None:
    place, path = int(len(whole) * share), tmp_path_factory.getbasetemp() / "damaged.safetensors"
    byte = bytes([whole[place] ^ flipped])
    for damaged in (whole[:place] + byte + whole[place + 1 :], whole[:place]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"damaged\.safetensors"):
            read_head(path)


# -- what stays the same ------------------------------------------------------------------------------------------------


def test_members_of_a_fold_may_share_their_standardisation(tmp_path: Path) -> None:
    first = member("linear", 0.5)
    standardise, layers = first.module, member("linear", seed=1).module
    shared = nn.Sequential(standardise[0], layers[1])  # type: ignore[index, arg-type]
    head = saved_head([first, replace(first, seed=1, module=shared)])
    (tmp_path / "h.safetensors").write_bytes(head_bytes(head))
    found = read_head(tmp_path / "h.safetensors")
    assert torch.equal(found.members[1].module.state_dict()["0.mean"], first.module.state_dict()["0.mean"])


def test_members_stay_the_same_heads_when_defaults_change(head: Path) -> None:
    with safe_open(head, "pt") as file:
        members = json.loads(file.metadata()[KEY])["members"]
    assert members[0] == {
        "head": "linear,lr=0.001,members=1,transform=sqrt,weight_decay=1", "seed": 0, "fold": 0, "weight": 0.75,
    }  # fmt: skip


# -- version 2: one training for each seed, which shared the standardisation --------------------------------------------


def written_in_version_2(head: SavedHead, path: Path) -> None:
    """Write a head of equal members as version 2 did."""
    path.write_bytes(head_bytes(head))

    def as_before(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        description["format_version"] = 2
        description["seeds"] = [one["seed"] for one in description.pop("members")]
        for name in [name for name in tensors if name.startswith("member")]:
            number, _, own = name.removeprefix("member").partition(".")
            tensor = tensors.pop(name).float()
            if own.startswith("0."):
                tensors[own] = tensor
            else:
                tensors[f"seed{description['seeds'][int(number)]}.{own}" if int(number) else own] = tensor

    rewritten(path, as_before)


@pytest.mark.parametrize(
    ("name", "spec", "options"),
    [
        ("linear", "linear", "transform=none"),
        ("mlp:8x2", "mlp:8x2", "dropout=0,members=1,transform=none,weight_decay=1"),
        ("mlp:8,dropout=0.3,weight_decay=0.1", "mlp:8", "members=1,transform=none"),
    ],
)
def test_heads_of_version_2_open_and_predict_as_they_did(tmp_path: Path, name: str, spec: str, options: str) -> None:
    """Their names are kept, whatever the name would now mean."""
    first, second = (member(f"{spec},{options}", 0.5, seed=seed) for seed in (4, 5))
    both = nn.Sequential(first.module[0], second.module[1])  # type: ignore[index, arg-type]
    head = saved_head([first, replace(second, module=both)], name=name)
    written_in_version_2(head, tmp_path / "old.safetensors")
    found = read_head(tmp_path / "old.safetensors")
    assert found.name == name
    assert [(one.spec, one.seed, one.fold, one.weight) for one in found.members] == [
        (first.spec, 4, 0, 0.5), (first.spec, 5, 0, 0.5),
    ]  # fmt: skip
    assert isinstance(found.members[0].module[0], Standardise)  # type: ignore[index]
    (tmp_path / "new.safetensors").write_bytes(head_bytes(head))
    old, new = (open_predictor(tmp_path / f"{which}.safetensors").predict(embeddings(5)) for which in ("old", "new"))
    assert np.array_equal(old.probabilities, new.probabilities)
    assert np.array_equal(old.calibrated, new.calibrated)
