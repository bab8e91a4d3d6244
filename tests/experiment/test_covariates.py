"""`train --covariates`: clinical data, images and both on the run's own splits, without a look at what is scored."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost import load_data
from hoarfrost.evaluation.comparison import NO_INTERVAL
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.experiment import covariates
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.specs import parse_heads
from hoarfrost.report.page import render
from hoarfrost.report.paper import named_figures, tables_of
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

LABELS = mixed({"benign": 120, "malignant": 80})
PATIENTS = [f"p{i // 2}" for i in range(200)]


def attributes() -> dict[str, list[str]]:
    rng = np.random.default_rng(3)
    is_malignant = np.array([label == "malignant" for label in LABELS])
    age = rng.normal(60, 10, 200) + 8 * is_malignant
    return {
        "age": [f"{one:.0f}" if known else "" for one, known in zip(age, rng.random(200) > 0.1, strict=True)],
        "Sex": np.where(rng.random(200) < 0.4 + 0.2 * is_malignant, "f", "m").tolist(),
        "note": [f"note {i}" for i in range(200)],
        "constant": ["x"] * 150 + [""] * 50,
        "biopsy": [str(int(one)) for one in is_malignant],
    }


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_labelled_cache(
        tmp_path / "c.h5", LABELS, patients=PATIENTS, attributes=attributes(),
        embeddings=embeddings_of(LABELS, distance=0.06),
    )  # fmt: skip


def trained(cache: Path, *names: str, **options: Any) -> Run:
    training = TrainingConfig(epochs=3, seeds=1)
    config = ExperimentConfig(training=training, covariates=names, overwrite=True, **options)
    return run_experiment(cache, cache.parent / "run", parse_heads(["linear", "logistic"]), config)


def test_run_compares_the_three_models_on_the_test_split_and_in_folds(cache: Path) -> None:
    run = trained(cache, "age", "sex", n_folds=5)
    found = run.covariates
    assert found is not None
    assert [(one.basis, one.n_folds, one.n) for one in found.results] == [("test", 1, 40), ("folds", 5, 200)]
    assert [(one.name, one.n_levels) for one in found.columns] == [("age", None), ("Sex", 2)]
    assert found.columns[0].n_missing == attributes()["age"].count("")
    test, folds = found.results
    head = run.head(run.selected)
    assert head.test is not None
    assert test.model("images").roc_auc.value == pytest.approx(head.test.value(ROC_AUC))
    assert test.model("images").roc_auc.interval == head.test.auc.interval
    assert run.cross_validation is not None
    assert folds.model("images").roc_auc == run.cross_validation.whole.pooled.auc
    for one in found.results:
        for gain in one.gains:
            both, other = one.model("both").roc_auc.value, one.model(gain.over).roc_auc.value
            assert both is not None
            assert other is not None
            assert gain.roc_auc.value == pytest.approx(both - other)
            assert "clustered by patient" in gain.roc_auc.method
    assert read_run(run.directory).covariates == found
    assert read_run(run.directory).config.covariates == ("age", "sex")


def test_models_are_fitted_without_the_images_that_are_scored(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    fit, score = covariates.clinical_and_both, covariates._scored
    parts: list[covariates.Part] = []

    def spied(columns: Sequence[Any], images: np.ndarray, y: np.ndarray, fitted: np.ndarray) -> Any:
        if len(columns) > 1:
            seen.append((images, fitted))
        return fit(columns, images, y, fitted)

    def remembered(task: Any, columns: Any, part: covariates.Part, prevalence: float | None) -> Any:
        parts.append(part)
        return score(task, columns, part, prevalence)

    monkeypatch.setattr(covariates, "clinical_and_both", spied)
    monkeypatch.setattr(covariates, "_scored", remembered)
    run = trained(cache, "age", "sex", n_folds=5)
    assert run.out_of_fold is not None
    assert len(seen) == len(parts) == 6
    for (_, fitted), part in zip(seen, parts, strict=True):
        assert np.array_equal(fitted, part.fitted)
        assert not {PATIENTS[i] for i in part.fitted} & {PATIENTS[i] for i in part.held_out}
    splits = np.array(run.predictions.splits)
    assert np.array_equal(parts[0].held_out, np.flatnonzero(splits == "test"))
    np.testing.assert_array_equal(
        parts[0].images, run.predictions.probabilities[run.selected]
    )  # out of fold where fitted
    numbers = np.array(run.out_of_fold.folds)
    for number, part in enumerate(parts[1:]):
        assert np.array_equal(part.held_out, np.flatnonzero(numbers == number))
        pooled = run.out_of_fold.probabilities["selected in each fold"]
        np.testing.assert_array_equal(part.images[part.held_out], pooled[part.held_out])


def test_covariates_of_test_images_change_no_fit(cache: Path, tmp_path: Path) -> None:
    first = trained(cache, "age", "sex")
    columns = attributes()
    moved = [i for i, split in enumerate(first.predictions.splits) if split == "test"]
    columns["age"] = [str(2 * i) if i in moved else one for i, one in enumerate(columns["age"])]
    other = write_labelled_cache(
        tmp_path / "other.h5", LABELS, patients=PATIENTS, attributes=columns,
        embeddings=embeddings_of(LABELS, distance=0.06),
    )  # fmt: skip
    second = trained(other, "age", "sex")
    assert first.covariates is not None
    assert second.covariates is not None
    (mine,), (theirs,) = first.covariates.results, second.covariates.results
    assert mine.threshold == theirs.threshold
    assert mine.model("images") == theirs.model("images")
    assert mine.model("clinical") != theirs.model("clinical")
    np.testing.assert_array_equal(
        first.predictions.probabilities[first.selected], second.predictions.probabilities[second.selected]
    )


def test_several_classes_have_a_gain_and_no_net_benefit(tmp_path: Path) -> None:
    labels = mixed({"a": 60, "b": 60, "c": 60})
    age = [str(i % 50 + 10 * (label == "b")) for i, label in enumerate(labels)]
    path = write_labelled_cache(tmp_path / "c.h5", labels, attributes={"age": age})
    run = trained(path, "age")
    assert run.covariates is not None
    (found,) = run.covariates.results
    assert found.threshold is None
    assert all(one.net_benefit is None for one in found.models)
    assert found.gains[0].roc_auc.interval is not None
    assert "What images add to clinical data" in render(run, with_images=False, with_map=False)


def test_several_labels_have_a_gain_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {name: [str(one) for one in rng.integers(0, 2, 200)] for name in ("effusion", "mass")}
    columns["age"] = [str(40 + i % 30 + 5 * int(one)) for i, one in enumerate(columns["mass"])]
    path = write_labelled_cache(
        tmp_path / "c.h5", [""] * 200, attributes=columns, paths=[f"{i}.png" for i in range(200)]
    )
    run = trained(path, "age", label_columns=("effusion", "mass"))
    assert run.covariates is not None
    assert run.covariates.results[0].gains[0].roc_auc.value is not None


@pytest.mark.parametrize("how", ["mean", "max"])
def test_patients_are_scored_if_asked_for(cache: Path, how: str) -> None:
    run = trained(cache, "age", per_patient=how, prevalence=0.1)
    assert run.covariates is not None
    (found,) = run.covariates.results
    assert found.n == 20
    assert found.curves["both"].prevalence == 0.1
    head = run.head(run.selected)
    assert head.test is not None
    assert found.model("images").roc_auc.value == pytest.approx(head.test.value(ROC_AUC))


def test_net_benefit_of_images_is_that_of_the_reports_decision_curve(cache: Path) -> None:
    run = trained(cache, "age")
    assert run.covariates is not None
    assert run.assessment is not None
    own, (found,) = run.assessment.classes[0].net_benefit, run.covariates.results
    assert own is not None
    assert found.curves["images"].net_benefit == pytest.approx(own.net_benefit)
    assert found.threshold is not None
    near = int(np.argmin(np.abs(np.array(own.thresholds) - found.threshold)))
    value = found.model("images").net_benefit
    assert value is not None
    assert value.value == pytest.approx(own.net_benefit[near], abs=0.05)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aeg", "--covariates aeg: .* no such column. Did you mean age\\? It has: Sex, age"),
        ("note", "the column note has 200 different texts, such as 'note 0'; at most 20"),
        ("constant", "the column constant is 'x' in every image that has a value"),
    ],
)
def test_columns_that_cannot_be_used_are_refused_before_training(cache: Path, name: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        trained(cache, "age", name)
    assert not (cache.parent / "run").exists()


def test_column_that_is_the_label_is_a_caution(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trained(cache, "biopsy", "age")
    text = "The covariate biopsy alone separates the classes perfectly."
    assert text in caplog.text
    assert any(warning.startswith(text) for warning in run.config.warnings)
    page = render(run, with_images=False, with_map=False)
    assert f'<a href="#covariates">Covariate</a> {text}' in page


def test_without_a_test_split_folds_are_needed(tmp_path: Path) -> None:
    path = write_labelled_cache(
        tmp_path / "c.h5",
        LABELS,
        attributes=attributes(),
        splits=["val" if i % 4 == 0 else "train" for i in range(200)],
    )
    with pytest.raises(TrainingError, match="no test split.*Add --folds 5"):
        trained(path, "age")
    run = trained(path, "age", n_folds=3)
    assert run.covariates is not None
    assert [one.basis for one in run.covariates.results] == ["folds"]


def test_report_has_the_sentence_the_table_the_curves_and_the_methods(cache: Path) -> None:
    run = trained(cache, "age", "sex", n_folds=5)
    assert run.covariates is not None
    page = render(run, with_images=False, with_map=False)
    for one in run.covariates.results:
        assert one.verdict in page
    assert "three models were compared on the same images: clinical data only, images only" in page
    assert "Wolpert 1992, Neural Networks" in page
    assert "How often these 95% intervals cover the truth is not known here" in page  # of 40 test images
    assert {"covariates 1", "covariates 2"} <= named_figures(run).keys()
    rows = tables_of(run)["covariates"].rows
    assert [row[:2] for row in rows[:5]] == [
        ("test", name) for name in ("clinical", "images", "both", "both minus clinical", "both minus images")
    ]
    plain = replace(run, covariates=None)
    assert "What images add" not in render(plain, with_images=False, with_map=False)
    assert "covariates" not in tables_of(plain)


def test_sentence_says_whether_the_interval_excludes_zero(cache: Path) -> None:
    run = trained(cache, "age")
    assert run.covariates is not None
    (found,) = run.covariates.results
    for low, high, words in (
        (0.01, 0.05, "Images add"),
        (-0.05, -0.01, "Images make"),
        (-0.01, 0.05, "It is not shown"),
    ):
        area = replace(found.gains[0].roc_auc, value=(low + high) / 2, low=low, high=high)
        changed = replace(found, gains=(replace(found.gains[0], roc_auc=area), *found.gains[1:]))
        assert changed.verdict.startswith(words)
        assert f"(95% CI {low:+.3f} to {high:+.3f})" in changed.verdict
    unknown = replace(found.gains[0], roc_auc=replace(found.gains[0].roc_auc, low=None, high=None))
    assert replace(found, gains=(unknown, *found.gains[1:])).verdict.endswith(f": {NO_INTERVAL}.")


def test_python_gives_attributes_beside_the_embeddings(cache: Path) -> None:
    data = load_data(cache)
    assert data.attributes["age"] == attributes()["age"]
    assert {len(cells) for cells in data.attributes.values()} == {len(data.y)}
