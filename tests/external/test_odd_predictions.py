"""CSVs of predictions as they come from other programs: read as they are meant, or refused with what is wrong."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.external.table import ColumnOptions, read_predictions
from hoarfrost.features.datasets.options import TableOptions
from hoarfrost.features.errors import DatasetError, HoarfrostError, TrainingError
from hoarfrost.report import write_report
from hoarfrost.runs import Run
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost

N = 60
RNG = np.random.default_rng(0)
Y = RNG.binomial(1, 0.4, N)
P = 1 / (1 + np.exp(-RNG.normal(1.5 * (Y - 0.5))))
NAMES = ("benign", "malignant")
IDS = [str(i) for i in range(N)]


def text_of(columns: Sequence[str], *cells: Sequence[object], separator: str = ",", end: str = "\n") -> str:
    rows = [columns, *zip(*cells, strict=True)]
    return end.join(separator.join(map(str, row)) for row in rows) + end


def written(folder: Path, content: str, encoding: str = "utf-8") -> Path:
    path = folder / "p.csv"
    path.write_bytes(content.encode(encoding))
    return path


def evaluated(file: Path, **options: object) -> Run:
    columns = {name: options.pop(name) for name in ("positive", "table") if name in options}
    config = PredictionsConfig(columns=ColumnOptions(**columns), **options)  # type: ignore[arg-type]
    return evaluate_predictions([file], file.with_name("e"), config=config)


def area_of(run: Run) -> float:
    assert run.heads[0].test is not None
    return run.heads[0].test.value(ROC_AUC)


PLAIN = ("id", "label", "probability")


@pytest.fixture(scope="module")
def area(tmp_path_factory: pytest.TempPathFactory) -> float:
    file = written(tmp_path_factory.mktemp("plain"), text_of(PLAIN, IDS, Y, P))
    return area_of(evaluated(file))


@pytest.mark.parametrize(
    "content",
    [
        text_of(PLAIN, IDS, Y, P, end="\r\n"),
        text_of(PLAIN, IDS, Y, P, separator=";"),
        text_of(PLAIN, IDS, Y, [str(one).replace(".", ",") for one in P], separator=";"),
        text_of(PLAIN, IDS, Y, P, separator="\t"),
        "\ufeff" + text_of(("ID", " Label", "Probability "), IDS, Y, [f" {one} " for one in P]),
        text_of(("id", "label", "probability:1"), IDS, Y, P),
        text_of(("id", "label", "probability:0"), IDS, Y, 1 - P),
        text_of(PLAIN, IDS[::-1], Y[::-1], P[::-1]),
    ],
)
def test_file_is_read_as_it_is_meant(tmp_path: Path, area: float, content: str) -> None:
    run = evaluated(written(tmp_path, content))
    assert area_of(run) == pytest.approx(area, abs=1e-12)
    write_report(run.directory)


LABELS = [NAMES[y] for y in Y]
CALLS = [NAMES[int(p > 0.5)] for p in P]
MIXED = [label.upper() if i % 2 else label for i, label in enumerate(LABELS)]
THREE = [*("abc" * 20)]
SHARES = np.full((N, 3), 1 / 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text_of(PLAIN, IDS, Y, [f"{100 * p:.1f}%" for p in P]), "Percentages must be divided by 100"),
        (text_of(PLAIN, IDS, Y, [f"{100 * p:.1f}" for p in P]), "Percentages must be divided by 100"),
        (text_of(PLAIN, IDS, Y, [1 + int(4 * p) for p in P]), "If these are ratings or other scores, name the column score"),
        (text_of(("id", "label", "call"), IDS, LABELS, [*CALLS[1:], "unsure"]), "call 'unsure' is none of the labels"),
        (text_of(PLAIN, IDS, MIXED, P), "differ only in case.*--merge-labels"),
        (text_of(PLAIN, IDS, ["nan", *LABELS[1:]], P), "missing value in words"),
        (text_of(PLAIN, [*IDS[1:], "59"], Y, P), "line 61: the id '59' is also in line 60"),
        (text_of(PLAIN, IDS, Y, ["nan", *P[1:]]), "line 2: probability 'nan' is not a number"),
        (
            text_of(("id", "label", *(f"probability:{c}" for c in "abc")), IDS, [*("ab" * 30)], *SHARES.T),
            "no row has the label 'c', of which there are probabilities.*--positive",
        ),
        (text_of(("id", "label", "a", "b"), IDS, THREE, *SHARES.T[:2]), "no column holds predictions"),
        (text_of(PLAIN, IDS, np.ones(N, int), P), "all 60 scored rows are 1"),
        (text_of((*PLAIN, "split"), IDS, Y, P, ["fold1", "fold2"] * 30), "no row to score"),
        ("", "there are no columns"),
        ("id,label,probability\n", "there are no rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(HoarfrostError, match=message):
        evaluated(written(tmp_path, content))
    assert not (tmp_path / "e").exists()


def test_spellings_are_merged_or_mapped(tmp_path: Path, area: float, hoarfrost: Hoarfrost) -> None:
    file = written(tmp_path, text_of(PLAIN, IDS, MIXED, P))
    merged = evaluated(file, positive=("malignant",), table=TableOptions(merge_labels=True), overwrite=True)
    names = tmp_path / "names.csv"
    names.write_text("label,name\nbenign,no\nmalignant,yes\n")
    found = [
        area_of(merged),
        json.loads(
            hoarfrost(
                *("evaluate", "--predictions", file, "--label-map", names, "--positive", "yes"),
                *("--output", tmp_path / "mapped", "--json"),
            )[1]
        )["heads"][0]["test"]["roc_auc"],
    ]
    assert found == pytest.approx([area, area])


def test_calls_may_have_names_that_labels_are_mapped_to(tmp_path: Path) -> None:
    names = write_csv(tmp_path / "names.csv", [["label", "name"], ["b", "benign"], ["m", "malignant"]])
    options = ColumnOptions(table=TableOptions(label_map=names))
    mapped = text_of(("id", "label", "call"), IDS, [label[0] for label in LABELS], CALLS)
    plain = evaluated(written(tmp_path, text_of(("id", "label", "call"), IDS, LABELS, CALLS)))
    found = read_predictions(written(tmp_path, mapped), options)
    assert found.labels == list(LABELS)
    assert (found.models[0].p == plain.predictions.probabilities[plain.selected]).all()


@pytest.mark.parametrize("spelled", [str.upper, str.title, lambda call: str(int(call == "malignant"))])
def test_calls_may_be_spelled_otherwise(tmp_path: Path, spelled: Callable[[str], str]) -> None:
    plain = evaluated(written(tmp_path, text_of(("id", "label", "call"), IDS, LABELS, CALLS)))
    other = evaluated(written(tmp_path, text_of(("id", "label", "call"), IDS, LABELS, map(spelled, CALLS))))  # type: ignore[arg-type]
    assert area_of(other) == area_of(plain)


def test_patients_in_both_splits_are_named(tmp_path: Path) -> None:
    patients, splits = [f"p{i // 3}" for i in range(N)], ["val", "test"] * 30
    run = evaluated(written(tmp_path, text_of((*PLAIN, "patient", "split"), IDS, Y, P, patients, splits)))
    assert run.external is not None
    assert any(note.startswith("20 patients have rows in both splits") for note in run.external.notes)
    apart = ["val" if i < 30 else "test" for i in range(N)]
    run = evaluated(written(tmp_path, text_of((*PLAIN, "patient", "split"), IDS, Y, P, patients, apart)))
    assert run.external is not None
    assert not any("both splits" in note for note in run.external.notes)


def test_validation_split_must_exist_and_not_be_scored(tmp_path: Path) -> None:
    file = written(tmp_path, text_of((*PLAIN, "split"), IDS, Y, P, ["tune", "test"] * 30))
    with pytest.raises(DatasetError, match="names the rows that are scored"):
        evaluated(file, validation_split="test")
    with pytest.raises(DatasetError, match="no row of .* has this split"):
        evaluated(file, validation_split="absent")
    assert len(evaluated(file, validation_split="tune").rows_of("val")) == 30


def test_site_without_a_class_has_no_area_and_stops_nothing(tmp_path: Path) -> None:
    sites = ["A" if y else "AB"[i % 2] for i, y in enumerate(Y)]
    run = evaluated(written(tmp_path, text_of((*PLAIN, "site"), IDS, Y, P, sites)))
    assert run.assessment is not None
    by_value = {one.value: one for one in run.assessment.subgroups}
    assert by_value["B"].roc_auc.value is None
    assert by_value["A"].roc_auc.value is not None
    write_report(run.directory)


def test_no_count_of_one_to_four_is_the_difference_of_two(tmp_path: Path) -> None:
    patients = [f"p{max(i, 2)}" for i in range(N)]  # three rows of one patient: 60 rows of 58
    out = tmp_path / "a.json"
    evaluated(written(tmp_path, text_of((*PLAIN, "patient"), IDS, Y, P, patients)), name="x", aggregate=out)
    shared = json.loads(out.read_text())
    assert (shared["n_images"], shared["n_patients"]) == (60, None)
    patients = [f"p{i // 2}" for i in range(N)]
    evaluated(
        written(tmp_path, text_of((*PLAIN, "patient"), IDS, Y, P, patients)), name="x", aggregate=out, overwrite=True
    )
    assert json.loads(out.read_text())["n_patients"] == 30


def test_label_that_is_unknown_for_a_few_images_is_not_shared(tmp_path: Path) -> None:
    unknown = [*Y[:-2], "", ""]
    own = ("path", "patient", "split", "label", "label:mass", "label:fluid", "h:mass", "h:fluid")
    cells = (IDS, [""] * N, ["test"] * N, [""] * N, Y, unknown, P, P)
    with pytest.raises(TrainingError, match="labels are known for 58 and for 60 images"):
        evaluated(written(tmp_path, text_of(own, *cells)), name="x", aggregate=tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
