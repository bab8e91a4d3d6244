"""The demo's scanners: trained on A and evaluated on B, in two commands."""

import json
from pathlib import Path

import pytest

from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.runs import read_run
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost
from tests.support.predicted import read_csv


@pytest.mark.usefixtures("free_backbone")
def test_head_of_scanner_a_is_evaluated_on_scanner_b_in_two_commands(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    assert hoarfrost("demo", tmp_path / "demo").status == 0
    rows = read_csv(tmp_path / "demo" / "labels.csv")
    for scanner in "AB":
        own = [list(row.values()) for row in rows if row["scanner"] == scanner]
        write_csv(tmp_path / "demo" / f"{scanner}.csv", [list(rows[0]), *own])
    options = ExtractOptions(weights="random:0", precision="float32")
    extract(tmp_path / "demo" / "A.csv", tmp_path / "a.h5", options=options)
    trained = hoarfrost(
        "train", "--cache", tmp_path / "a.h5", "--run", tmp_path / "a", "--positive", "malignant", "--head", "logistic"
    )
    assert trained.status == 0, trained.stderr
    done = hoarfrost("evaluate", tmp_path / "demo" / "B.csv", "--run", tmp_path / "a", "--json")
    assert done.status == 0, done.stderr
    document = json.loads(done.stdout)
    assert Path(document["run"]).name == "a-on-B"
    found = read_run(tmp_path / "a-on-B")
    assert found.external is not None
    assert {one.what for one in found.external.differences if one.differs} >= {"scanner"}
    assert [one.n for one in found.external.overlap] == [0, 0, 0]
    assert len(found.predictions.paths) == sum(row["scanner"] == "B" for row in rows)
    assert {one.metric for one in found.external.drops} == {"roc_auc", "sensitivity", "specificity"}
    assert hoarfrost("report", "--run", tmp_path / "a-on-B").status == 0
