"""One experiment: from a cached dataset to a run folder, without an image or a backbone."""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import HeadResult, Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.commands import NumberOfThreads
from tests.support.labelled import NOT_UTF8, embeddings_of, mixed, write_labelled_cache

QUICK = TrainingConfig(epochs=4, patience=2)
CROSS_FITTED = TrainingConfig(epochs=4)
TWO = {"benign": 60, "malignant": 40}
THREE = {"benign": 60, "malignant": 40, "normal": 30}


def train(
    cache: Path,
    directory: Path | None = None,
    heads: Sequence[str] = ("linear",),
    config: TrainingConfig = QUICK,
    **options: Any,
) -> Run:
    apart = {name: options.pop(name) for name in ("command", "on_progress") if name in options}
    asked = ExperimentConfig(training=config, **options)
    return run_experiment(cache, directory or cache.parent / "run", parse_heads(list(heads)), asked, **apart)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def read_metrics(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "metrics.json").read_text())
    return content


def as_others_too(head: HeadResult) -> tuple[object, ...]:
    """Return a head's result without its intervals on validated images, which the selected head does not have."""
    scores = [(name, head.val.value(name)) for name in ("roc_auc", "accuracy", "loss")]
    return replace(head, val=head.test), *scores  # type: ignore[arg-type]


# -- what a run holds ---------------------------------------------------------------------------------------------------


def test_run_folder_has_the_files_of_the_contract(tmp_path: Path) -> None:
    train(write_labelled_cache(tmp_path / "cache.h5", mixed(TWO)), heads=("linear", "mlp:8x2,dropout=0.2"))
    files = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert files == [
        "SHA256SUMS", "config.json", "heads/linear.safetensors", "heads/mean.safetensors",
        "heads/mlp-8x2-dropout=0.2.safetensors", "history.csv", "metrics.json", "predictions.csv",
    ]  # fmt: skip


def test_metrics_and_predictions_have_the_shape_of_the_contract(tmp_path: Path) -> None:
    patients = [f"p{i}" for i in range(100)]
    train(
        write_labelled_cache(tmp_path / "cache.h5", mixed(TWO), patients=patients),
        heads=("linear", "mlp:8"),
    )
    metrics = read_metrics(tmp_path / "run")
    assert metrics["selected"] == "mean"
    assert [head["name"] for head in metrics["heads"]] == ["linear", "mlp:8", "mean"]
    for head in metrics["heads"]:
        assert {"roc_auc", "accuracy"} <= head["val"].keys() & head["test"].keys()
        assert "roc_auc_ci95" in head["test"]
        # None beside what selected the head, or gave it its members.
        is_selected = head["name"] == "mean" or head["name"] in metrics["heads"][2]["shares"]
        assert ("roc_auc_ci95" in head["val"]) == (not is_selected)
        assert (tmp_path / "run" / head["weights_file"]).is_file()
    rows = read_csv(tmp_path / "run" / "predictions.csv")
    assert list(rows[0]) == ["path", "patient", "split", "label", "linear", "mlp:8", "mean"]
    assert [row["patient"] for row in rows] == patients


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_recomputed_from_predictions_by_scikit_learn_are_equal(tmp_path: Path, split: str) -> None:
    train(write_labelled_cache(tmp_path / "cache.h5", mixed(TWO)), heads=("linear", "mlp:8"))
    rows = [row for row in read_csv(tmp_path / "run" / "predictions.csv") if row["split"] == split]
    y_true = [int(row["label"] == "malignant") for row in rows]
    for head in read_metrics(tmp_path / "run")["heads"]:
        p = np.array([float(row[head["name"]]) for row in rows])
        assert head[split]["roc_auc"] == pytest.approx(roc_auc_score(y_true, p), abs=1e-12)
        assert head[split]["accuracy"] == accuracy_score(y_true, p >= head[split]["thresholds"][0])
        assert head[split]["loss"] == pytest.approx(log_loss(y_true, p), rel=1e-12)
        assert head[split]["n"] == len(rows)


def test_three_classes_recomputed_by_scikit_learn_are_equal(tmp_path: Path) -> None:
    train(write_labelled_cache(tmp_path / "cache.h5", mixed(THREE)))
    rows = [row for row in read_csv(tmp_path / "run" / "predictions.csv") if row["split"] == "test"]
    labels = sorted(THREE)
    p = np.array([[float(row[f"linear:{label}"]) for label in labels] for row in rows])
    y_true = np.array([labels.index(row["label"]) for row in rows])
    test = read_metrics(tmp_path / "run")["heads"][0]["test"]
    assert test["roc_auc"] == pytest.approx(roc_auc_score(y_true, p, multi_class="ovr", average="macro"), abs=1e-12)
    assert test["accuracy"] == accuracy_score(y_true, p.argmax(axis=1))
    assert list(test["roc_auc_per_class"]) == labels


def test_heads_file_alone_gives_the_predictions_from_raw_embeddings(tmp_path: Path) -> None:
    labels = mixed(TWO)
    run = train(write_labelled_cache(tmp_path / "cache.h5", labels), heads=("linear,transform=none",))
    with safe_open(tmp_path / "run" / "heads" / "linear-transform=none.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - it is no mapping
        description = json.loads(file.metadata()["hoarfrost"])
    assert description["head"] == "linear,transform=none"
    assert description["classes"] == ["benign", "malignant"]
    assert description["fingerprint"] == run.config.embeddings.fingerprint
    x = (torch.from_numpy(embeddings_of(labels)) - tensors["member0.0.mean"]) / tensors["member0.0.std"]
    logits = x @ tensors["member0.1.0.weight"].T + tensors["member0.1.0.bias"]
    assert run.predictions.probabilities["linear,transform=none"] == pytest.approx(logits.softmax(1).numpy(), abs=1e-6)


def test_run_in_memory_is_the_run_that_is_read_back(tmp_path: Path) -> None:
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed(TWO)), command=["hoarfrost", "train", "--run", "a b"])
    read = read_run(tmp_path / "run")
    assert read.config == run.config
    assert read.config.command == "hoarfrost train --run 'a b'"
    assert read.heads == run.heads
    assert read.history == run.history
    assert read.y_true().tolist() == run.y_true().tolist()


def test_history_has_a_line_for_each_epoch_of_each_head(tmp_path: Path) -> None:
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed(TWO)), heads=("linear", "mlp:8"))
    lines = Counter(row["head"] for row in read_csv(tmp_path / "run" / "history.csv"))
    linear, mlp, mean = run.heads
    assert (linear.n_members, mlp.n_members) == (1, 20)
    assert mean.n_members == sum(run.head(name).n_members for name in mean.shares)
    assert lines == {head.name: sum(seed.epochs for seed in head.seeds) for head in (linear, mlp)}
    for head in (linear, mlp):
        for seed in head.seeds:
            places = (head.name, seed.seed, seed.best_epoch)
            best = next(e for e in run.history if (e.head, e.seed, e.epoch) == places)
            assert best.val_roc_auc == pytest.approx(seed.val_roc_auc, abs=1e-12)
    assert (mean.seeds, mean.epochs, mean.best_epoch) == ((), 0, 0)


def test_selected_head_is_the_best_out_of_fold_whatever_test_says(tmp_path: Path) -> None:
    labels, splits = mixed(TWO), ["train"] * 80 + ["test"] * 20
    x = embeddings_of(labels, distance=0.3)
    labels[80:] = ["malignant" if label == "benign" else "benign" for label in labels[80:]]
    cache = write_labelled_cache(tmp_path / "cache.h5", labels, splits=splits, embeddings=x)
    run = train(cache, heads=("linear,lr=1e-9", "linear"), config=CROSS_FITTED)
    bad, good = run.heads
    assert run.selected == "linear"
    assert good.val.value("loss") < bad.val.value("loss")
    assert good.test.value("roc_auc") < bad.test.value("roc_auc")  # type: ignore[union-attr]


def test_the_mean_of_all_kinds_is_selected_and_best_selects_the_one_with_the_lowest_loss(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO), embeddings=embeddings_of(mixed(TWO), distance=0.05))
    heads = ["linear", "linear,lr=0.01", "mlp:8", "mlp:8,lr=0.01"]
    mean, best = (
        train(cache, tmp_path / select, heads=heads, config=replace(CROSS_FITTED, seeds=2), select=select)
        for select in ("mean", "best")
    )
    assert [as_others_too(head) for head in mean.heads] == [as_others_too(head) for head in best.heads]
    assert [head.name for head in mean.heads] == [*heads, "mean"]
    losses = {head.name: head.val.value("loss") for head in mean.heads}
    single = {name: loss for name, loss in losses.items() if name != "mean"}
    assert (mean.selected, best.selected) == ("mean", min(single, key=single.__getitem__))
    assert (mean.config.select, best.config.select) == ("mean", "best")
    shares = mean.heads[-1].shares
    assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
    for kind in ("linear", "mlp"):  # of each kind the best, or none
        alike = {name: loss for name, loss in single.items() if name.startswith(kind)}
        assert {name for name in shares if name in alike} <= {min(alike, key=alike.__getitem__)}
    assert [seed.seed for seed in mean.heads[0].seeds] == [0, 1]
    assert [head.n_members for head in mean.heads[:4]] == [10] * 4  # five folds, two seeds


@pytest.mark.parametrize("config", [QUICK, CROSS_FITTED], ids=["validation split", "cross-fitted"])
def test_a_head_that_predicts_the_same_for_every_image_is_named(tmp_path: Path, config: TrainingConfig) -> None:
    # A penalty that leaves no weight: what remains is the share of each class.
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed({"benign": 91, "malignant": 30}))
    run = train(cache, heads=("logistic,C=1e-15", "logistic,C=0.01"), config=config)
    collapsed, sound = run.heads
    assert "collapsed: it predicts the same probabilities for every image" in collapsed.alarms
    assert not any("collapsed" in alarm for alarm in sound.alarms)


def test_a_reference_that_is_better_is_named_with_both_figures_and_the_interval(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO), embeddings=embeddings_of(mixed(TWO), distance=0.2))
    run = train(cache, heads=("linear,lr=1e-9", "logistic"), config=CROSS_FITTED)
    weak, sound, _ = run.heads
    logistic = next(one for one in run.references if one.name == "logistic regression")
    better, own = logistic.val.value("roc_auc"), weak.val.value("roc_auc")
    (said,) = (alarm for alarm in weak.alarms if alarm.startswith("logistic regression is better: "))
    words = r".*: out-of-fold ROC AUC (.*) against (.*) \(difference (.*)\)"
    figures = re.fullmatch(words, said)
    assert figures is not None
    assert figures.groups() == (f"{better:.3f}", f"{own:.3f}", f"{better - own:.3f}")
    assert sound.alarms == ()  # whichever is ahead, the interval contains zero


def test_separable_classes_reach_a_test_auc_of_one(tmp_path: Path) -> None:
    labels = mixed(TWO)
    cache = write_labelled_cache(tmp_path / "cache.h5", labels, embeddings=embeddings_of(labels, distance=1))
    assert train(cache).heads[0].test.value("roc_auc") == 1.0  # type: ignore[union-attr]


# -- the same again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_same_seed_gives_the_same_metrics_and_predictions_to_the_last_digit(
    tmp_path: Path, n_threads: NumberOfThreads, count: int
) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO))
    n_threads(count)
    for name in ("first", "second"):
        train(cache, tmp_path / name, heads=("linear", "mlp:8x2,dropout=0.3"))
    for name in ("predictions.csv", "history.csv", "heads/linear.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    first, second = (read_run(tmp_path / name) for name in ("first", "second"))
    assert first.heads == second.heads
    assert first.selected == second.selected


def test_heads_result_does_not_depend_on_which_others_are_in_the_run(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO))
    alone = train(cache, heads=("mlp:8,dropout=0.3",))
    among = train(cache, heads=("linear", "mlp:16x2,dropout=0.1", "mlp:8,dropout=0.3"))
    assert as_others_too(alone.heads[0]) == as_others_too(among.heads[2])


def test_another_seed_gives_another_split_and_other_metrics(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO))
    first, second = train(cache), train(cache, config=replace(QUICK, seed=1))
    assert first.predictions.splits != second.predictions.splits
    assert first.heads != second.heads


# -- what is told apart -------------------------------------------------------------------------------------------------


def test_positive_labels_are_class_one_against_all_others(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(THREE))
    run = train(cache, positive=("normal", "malignant"))
    assert run.config.dataset.positive == ("malignant", "normal")
    assert set(run.predictions.labels) == set(THREE)
    assert run.y_true().tolist() == [int(label != "benign") for label in run.predictions.labels]
    assert run.heads[0].n_parameters == 1_026


def test_two_labels_without_positive_take_the_second_in_order_as_class_one(tmp_path: Path) -> None:
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed({"no": 30, "yes": 30})))
    assert run.config.dataset.positive == ("yes",)


def test_labels_that_are_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed({"2": 20, "10": 20, "9": 20})))
    assert run.config.dataset.classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (("cyst",), "--positive cyst: the dataset 'phantoms' has no such label. Its labels: benign, malignant, normal"),
        (("Malignant",), "--positive Malignant: the dataset 'phantoms' has no such label"),
        (("benign", "malignant", "normal"), r"--positive names all labels .*At least one must be class 0"),
    ],
)
def test_positive_that_makes_no_two_classes_is_refused(tmp_path: Path, positive: tuple[str, ...], message: str) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(THREE))
    with pytest.raises(TrainingError, match=message):
        train(cache, positive=positive)
    assert not (tmp_path / "run").exists()


def test_one_readable_class_is_refused(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", ["a"] * 20 + ["b"] * 3, unreadable=(20, 21, 22))
    with pytest.raises(TrainingError, match=r"'phantoms' has readable images of one class only \(a\).*extract again"):
        train(cache)


@pytest.mark.parametrize("label", [NOT_UTF8, "a\nb", "<script>", "a,b", "Höhle"])
def test_odd_labels_go_through_to_the_heads_file(tmp_path: Path, label: str) -> None:
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed({label: 30, "z": 30, "zz": 30})))
    assert label in read_run(run.directory).config.dataset.classes
    with safe_open(tmp_path / "run" / run.heads[0].weights_file, "pt") as file:
        assert json.loads(file.metadata()["hoarfrost"])["classes"] == list(run.config.dataset.classes)


# -- splits -------------------------------------------------------------------------------------------------------------


def given_splits(n: int, *names: str) -> list[str]:
    return [names[i % len(names)] for i in range(n)]


def test_datasets_own_splits_are_honoured(tmp_path: Path) -> None:
    splits = given_splits(100, "train", "train", "val", "test", "test")
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed(TWO), splits=splits))
    assert run.predictions.splits == tuple(splits)
    assert run.config.dataset.split_by == "given"


def test_test_images_have_no_say_in_the_head(tmp_path: Path) -> None:
    labels, splits = mixed(TWO), given_splits(100, "train", "train", "val", "test")
    x = embeddings_of(labels)
    train(write_labelled_cache(tmp_path / "a.h5", labels, splits=splits, embeddings=x), tmp_path / "a")
    x[[i for i, name in enumerate(splits) if name == "test"]] *= 100
    train(write_labelled_cache(tmp_path / "b.h5", labels, splits=splits, embeddings=x), tmp_path / "b")
    a, b = ((tmp_path / run / "heads" / "linear.safetensors").read_bytes() for run in ("a", "b"))
    assert a == b


def test_without_a_test_split_nothing_is_called_test(tmp_path: Path) -> None:
    splits = given_splits(100, "train", "train", "val")
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed(TWO), splits=splits))
    assert run.predictions.splits == tuple(splits)
    assert read_metrics(tmp_path / "run")["heads"][0]["test"] is None
    assert list(run.config.dataset.counts) == ["train", "val"]


def test_without_a_val_split_it_is_carved_from_train_alone_by_patient(tmp_path: Path) -> None:
    patients = [f"p{i // 4}" for i in range(100)]
    splits = ["test" if i // 4 % 5 == 4 else "train" for i in range(100)]
    labels = ["benign" if i // 4 % 2 else "malignant" for i in range(100)]
    run = train(write_labelled_cache(tmp_path / "cache.h5", labels, splits=splits, patients=patients))
    pairs = list(zip(splits, run.predictions.splits, strict=True))
    assert {found for given, found in pairs if given == "test"} == {"test"}
    assert {found for given, found in pairs if given == "train"} == {"train", "val"}
    in_val = {p for p, found in zip(patients, run.predictions.splits, strict=True) if found == "val"}
    in_train = {p for p, found in zip(patients, run.predictions.splits, strict=True) if found == "train"}
    assert len(in_val) == 4
    assert not in_val & in_train


def test_split_is_by_patient_where_patients_are_known(tmp_path: Path) -> None:
    patients = [f"p{i % 40}" for i in range(100)]
    labels = ["benign" if i % 40 < 25 else "malignant" for i in range(100)]
    run = train(write_labelled_cache(tmp_path / "cache.h5", labels, patients=patients))
    found = Counter(patient for patient, _ in set(zip(patients, run.predictions.splits, strict=True)))
    assert set(found.values()) == {1}
    assert run.config.dataset.split_by == "patient"
    assert run.config.dataset.n_patients == 40


def test_same_bytes_are_never_in_two_splits(tmp_path: Path) -> None:
    contents = [i % 50 for i in range(100)]
    labels = ["benign" if content % 2 else "malignant" for content in contents]
    run = train(write_labelled_cache(tmp_path / "cache.h5", labels, contents=contents))
    found = Counter(content for content, _ in set(zip(contents, run.predictions.splits, strict=True)))
    assert set(found.values()) == {1}
    assert run.config.dataset.split_by == "image"


def test_ten_images_a_class_are_enough(tmp_path: Path) -> None:
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed({"a": 10, "b": 10})))
    assert run.config.dataset.counts == {"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}


@pytest.mark.parametrize("lacking", ["train", "val", "test"])
def test_class_missing_in_a_given_split_is_refused_with_its_counts(tmp_path: Path, lacking: str) -> None:
    splits = given_splits(60, "train", "val", "test")
    labels = ["benign" if i % 2 or splits[i] == lacking else "malignant" for i in range(60)]
    cache = write_labelled_cache(tmp_path / "cache.h5", labels, splits=splits)
    message = rf"split {lacking} has 0 image\(s\) of the class 'malignant'. At least 2 .*has 20 benign, 0 malignant"
    with pytest.raises(TrainingError, match=message):
        train(cache)
    assert not (tmp_path / "run").exists()


def test_class_too_small_to_split_is_refused_with_its_number(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed({"benign": 60, "malignant": 2}))
    with pytest.raises(TrainingError, match=r"class 'malignant' has 2 patient\(s\) \(or images.*At least 3 are needed"):
        train(cache)


def test_given_splits_without_train_are_refused(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO), splits=given_splits(100, "val", "test"))
    with pytest.raises(TrainingError, match="'phantoms' has no images in the split train"):
        train(cache)
