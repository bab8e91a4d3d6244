"""`replay` of a run whose numbers were all changed: each is found, or is listed as not computed again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.external.cohort import CohortConfig, evaluate_cohort
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.replay.comparing import is_in, numbers
from hoarfrost.replay.replaying import Replay, replay
from hoarfrost.runs.digests import write_digests
from hoarfrost.training import TrainingConfig
from tests.support.builders import write_csv
from tests.support.cohorts import write_cohort
from tests.support.labelled import embeddings_of, write_labelled_cache
from tests.support.predicted import train_on_pictures


def changed(document: dict[str, Any]) -> dict[str, Any]:
    """Change every number of a metrics.json."""
    found = {
        name: with_other_numbers(part, np.random.default_rng(i)) for i, (name, part) in enumerate(document.items())
    }
    if found.get("extrapolation"):  # its sizes follow from those of the learning curve, and may change alike
        found["extrapolation"]["n_images"] = [10**6 + n for n in found["extrapolation"]["n_images"]]
    for head, own in zip(found["heads"], document["heads"], strict=True):
        if "roc_auc" not in own["val"]:  # a count without scores is refused when the run is read
            head["val"]["n"] = own["val"]["n"]
    return found


def with_other_numbers(value: Any, rng: np.random.Generator) -> Any:
    """Change every number, each by more than the tolerance, and shares within their range."""
    if isinstance(value, dict):
        return {key: with_other_numbers(one, rng) for key, one in value.items()}
    if isinstance(value, list):
        return [with_other_numbers(one, rng) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, int):
        return value + int(rng.integers(1, 9))
    return value + (1 if value < 0.5 else -1) * rng.uniform(1e-4, 1e-3) * max(1.0, abs(value))


def replayed_with(run: Path, folder: Path, change: Callable[[Any], Any]) -> Replay:
    """Replay a copy of a run with another metrics.json and its digest."""
    shutil.copytree(run, folder)
    path = folder / "metrics.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    write_digests(folder)
    return replay(folder)


def check_every_number(run: Path, folder: Path, *, listed: set[str]) -> None:
    """Check that each number is compared, but for those in the `listed` parts, which a sentence names."""
    same = replay(run)
    assert same.is_equal, same.differing
    found = replayed_with(run, folder, changed)
    assert found.not_compared == same.not_compared
    is_listed, places = is_in(found.not_compared), {one.place for one in found.differing}
    parts = json.loads((run / "metrics.json").read_text()).items()
    recorded = {place: n for name, part in parts for place, n in numbers(part, name)}
    # A difference may be that of a whole, as "4 values": then everything in it is found.
    is_found = is_in([one.place for one in found.differing if one.size is None])
    unseen = [one for one in recorded if not (one in places or is_found(one) or is_listed(one))]
    assert [one for one in unseen if not (one.endswith(".val.n") and recorded[one] == 0)] == []
    assert found.n_figures == sum(not is_listed(place) for place in recorded)
    assert {place for place in found.not_compared if any(is_in([place])(one) for one in recorded)} == listed


OF_TRAINING = {"heads[*].seeds", "heads[*].best_epoch", "heads[*].epochs"}
OF_FOLDS = {"cross_validation.held_by_sets"}
OF_CLASSES = ("sensitivity", "specificity", "precision")
DECISIONS = ("accuracy", "balanced_accuracy", "f1", "matthews")
OF_HEAD = {"heads[*].val", "heads[*].best_epoch", "heads[*].epochs", "heads[*].shares"}
OF_COLUMNS = {
    "assessment.subgroups", "assessment.subgroup_calibration", "assessment.subgroup_differences", "assessment.heterogeneity",
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with folds, repeats, sites, covariates, references, subgroups and a learning curve."""
    folder, rng = tmp_path_factory.mktemp("everything"), np.random.default_rng(0)
    labels = [str(one) for one in rng.choice(["benign", "malignant"], 240)]
    columns = {
        "site": [str(one) for one in rng.choice(list("AB"), 240)],
        "age": [str(int(one)) for one in rng.integers(30, 80, 240)],
    }
    cache = write_labelled_cache(
        folder / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.1), attributes=columns,
        patients=[f"p{i // 2}" for i in range(240)],
    )  # fmt: skip
    config = ExperimentConfig(
        positive=["malignant"], training=TrainingConfig(epochs=3, seeds=2), n_folds=3, n_repeats=2, leave_out="site",
        with_learning_curve=True, covariates=("age",), prevalence=0.1,
    )  # fmt: skip
    return run_experiment(cache, folder / "run", parse_heads(["logistic", "mlp:8"]), config).directory


def test_every_number_of_a_training_is_compared_or_listed(everything: Path, tmp_path: Path) -> None:
    n_results = len(json.loads((everything / "metrics.json").read_text())["cross_validation"]["results"])
    of_folds = {f"cross_validation.results[{i}].pooled.{key}*" for i in range(n_results) for key in DECISIONS}
    parts = {"learning_curve", "left_out", "covariates", "repeats"}
    check_every_number(everything, tmp_path / "r", listed=OF_TRAINING | OF_FOLDS | of_folds | parts)


@pytest.mark.parametrize("kind", ["classes", "labels", "patients"])
def test_every_number_of_folds_of_other_tasks_is_compared_or_listed(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = [str(one) for one in rng.choice(["a", "b", "c"] if kind == "classes" else ["a", "b"], 160)]
    columns = {"mass": [str(int(one == "a")) for one in labels], "fluid": [str(i % 3 % 2) for i in range(160)]}
    cache = write_labelled_cache(
        tmp_path / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.1),
        attributes=columns if kind == "labels" else {}, patients=[f"p{i // 2} {labels[i]}" for i in range(160)],
    )  # fmt: skip
    config = ExperimentConfig(
        label_columns=["mass", "fluid"] if kind == "labels" else None, training=TrainingConfig(epochs=3, seeds=1),
        n_folds=3, per_patient="mean" if kind == "patients" else None,
    )  # fmt: skip
    run = run_experiment(cache, tmp_path / "run", parse_heads(["mlp:8"]), config).directory
    results = json.loads((run / "metrics.json").read_text())["cross_validation"]["results"]
    keys = [
        *DECISIONS,
        *OF_CLASSES,
        *(f"per_class.*.{key}" for key in (*OF_CLASSES, "f1", "balanced_accuracy", "matthews")),
    ]
    wanted = DECISIONS if kind == "patients" else keys
    decided = {
        f"cross_validation.results[{i}].pooled.{key}*" for i, one in enumerate(results) if "decided_by" in one["pooled"]
        for key in wanted
    }  # fmt: skip
    check_every_number(run, tmp_path / "r", listed=OF_TRAINING | OF_FOLDS | decided)


def test_every_number_of_an_evaluation_of_predictions_is_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200)
    p = np.clip(0.5 + 0.2 * (y - 0.5) + rng.normal(0, 0.2, 200), 0.01, 0.99)
    columns = "id", "label", "patient", "site", "split", "probability"
    facts = ([f"p{i // 2}", "AB"[i // 4 % 2], "val" if i % 8 < 2 else "test", repr(float(p[i]))] for i in range(200))
    rows = [[*columns], *([str(i), str(y[i]), *one] for i, one in enumerate(facts))]
    scores = [["id", "label", "score"], *([str(i), str(y[i]), str(int(10 * p[i]))] for i in range(200))]
    files = [write_csv(tmp_path / "a.csv", rows), write_csv(tmp_path / "b.csv", scores)]
    run = evaluate_predictions(files, tmp_path / "e", config=PredictionsConfig(prevalence=0.1)).directory
    check_every_number(run, tmp_path / "r", listed={"external.scales"})
    assert (run / "attributes.csv").read_text().splitlines()[:2] == ["path,site", "0,A"]
    (run / "attributes.csv").unlink()  # as earlier versions wrote it
    write_digests(run)
    check_every_number(run, tmp_path / "earlier", listed={*OF_COLUMNS, "external.scales"})
    sentence = "subgroups, and drops by site: an evaluation of an earlier version does not hold the columns."
    assert sentence in replay(run).skipped


@pytest.mark.usefixtures("free_backbone")
def test_every_number_of_an_evaluation_of_a_cohort_is_compared_or_listed(tmp_path: Path) -> None:
    trained, cohort = train_on_pictures(tmp_path), write_cohort(tmp_path / "hospital_b")
    config = CohortConfig(cache=tmp_path / "b.h5", options=ExtractOptions(device="cpu"))
    of_other = {"external.overlap", "external.shared", "shortcuts"}
    for name, one in (("kept", config), ("not kept", CohortConfig())):
        run = evaluate_cohort(cohort, tmp_path / name, run=trained.run, config=one).directory
        check_every_number(
            run, tmp_path / f"{name} changed", listed=OF_HEAD | of_other | {"external.drops[*].internal"}
        )
    head = trained.run / "heads" / "linear.safetensors"
    run = evaluate_cohort(cohort, tmp_path / "file", head=str(head), config=config).directory
    check_every_number(run, tmp_path / "file changed", listed={"shortcuts", "external.overlap"})
