"""A rule of splits is one entry with its words: `train` applies it, and every text says it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost import train
from hoarfrost.cli.console.training import train_text
from hoarfrost.experiment import splits
from hoarfrost.experiment.splits import SPLIT_RULES, SplitInput, SplitRule, rule_named
from hoarfrost.heads.files import read_head
from hoarfrost.inference.export.card import model_card
from hoarfrost.report.checklists import checklists_of
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.methods import methods_of
from hoarfrost.report.provenance import provenance_of
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import write_labelled_cache

N = 120
QUICK = TrainingConfig(epochs=2)
OF_SITE = np.array(["train", "val", "test", "train"])


def by_site(images: SplitInput) -> np.ndarray:
    sites = images.column("site")
    assert sites is not None
    return OF_SITE[[int(site) for site in sites]]


BY_SITE = SplitRule(
    name="site",
    brief="by site",
    origin="drawn here, by site",
    method="Sites were shared out, so that no site is in two splits (seed {seed})",
    applies=lambda images: images.column("site") is not None,
    divide=by_site,
)


def run_of(folder: Path, cross_fit: bool | None = None, **columns: object) -> Run:
    labels = ["benign" if i % 2 else "malignant" for i in range(N)]
    cache = write_labelled_cache(folder / "c.h5", labels, **columns)  # type: ignore[arg-type]
    return train(cache, folder / "run", ["linear"], config=QUICK, cross_fit=cross_fit)


def test_a_new_rule_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SPLIT_RULES", (BY_SITE, *SPLIT_RULES))
    sites = [str(i // 2 % 4) for i in range(N)]
    run = run_of(tmp_path, attributes={"site": sites}, unreadable=[5])
    del sites[5]
    assert list(run.predictions.splits) == OF_SITE[[int(site) for site in sites]].tolist()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]["split_by"] == "site"
    read = read_run(run.directory)
    evaluation = evaluation_of(read)
    assert "images, split by site\n" in train_text(read)
    assert "Sites were shared out, so that no site is in two splits (seed 0): " in methods_of(read, evaluation)
    assert "drawn here, by site" in [fact.value for fact in provenance_of(read.config)["Dataset"]]
    assert "drawn here, by site: images in " in str(checklists_of(read, evaluation))
    card = model_card(read, read_head(run.directory / read.heads[0].weights_file), "model.onnx", [])
    assert "; split by site." in card


@pytest.mark.parametrize(
    ("columns", "name", "brief"),
    [
        ({}, "image", "by image"),
        ({"patients": [f"p{i % 40}" for i in range(N)]}, "patient", "by patient"),
        ({"splits": ["train", "train", "val", "val", "test", "test"] * 20}, "given", "as given by the dataset"),
        ({"splits": ["train", "train", "train", "train", "test", "test"] * 20}, "given", "as given by the dataset"),
        (
            {"splits": ["train", "train", "train", "train", "test", "test"] * 20, "cross_fit": False},
            "given, val from train",
            "as given by the dataset, val taken from train",
        ),
    ],
)
def test_the_first_rule_that_applies_is_recorded_and_said(
    tmp_path: Path, columns: dict[str, Any], name: str, brief: str
) -> None:
    run = run_of(tmp_path, **columns)
    assert run.config.dataset.split_by == name
    assert f"images, split {brief}\n" in train_text(run)


def test_names_of_rules_differ_and_a_later_versions_rule_is_named() -> None:
    assert len({rule.name for rule in SPLIT_RULES}) == len(SPLIT_RULES)
    assert all(rule_named(rule.name) is rule for rule in SPLIT_RULES)
    later = rule_named("hospital")
    assert (later.brief, later.origin) == ("by hospital", "hospital")
