"""Several labels per image: unknown ones have no weight, each label is scored separately, and the run states so."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss, matthews_corrcoef, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from hoarfrost.cli.console.training import train_text
from hoarfrost.evaluation import delong_ci, macro_auc_ci
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.errors import DatasetError, TrainingError
from hoarfrost.heads.kinds import HeadSpec, Linear
from hoarfrost.heads.specs import parse_head, parse_heads
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run, read_run
from hoarfrost.training import Fold, Labelled, TrainingConfig, train_heads
from hoarfrost.training.batches import Batches, Group, seed_of
from hoarfrost.training.objective import MultiLabel
from tests.support.builders import write_csv, write_images, write_npz
from tests.support.labelled import write_labelled_cache
from tests.support.samples import scored

QUICK = TrainingConfig(epochs=15, patience=15)
LABELS = ("effusion", "mass", "nodule")


def drawn(n: int = 400, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draw embeddings (n, 512) and three labels (n, 3), a tenth unknown."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < [0.5, 0.3, 0.2]).astype(np.int64)
    x = rng.standard_normal((n, 512)).astype(np.float32)
    x[:, :60] += np.tile(y, 20)
    y[rng.random((n, 3)) < 0.1] = -1
    return x, y


def write_multilabel_cache(path: Path, n: int = 400, **columns: list[str]) -> Path:
    x, y = drawn(n)
    text = {1: "1", 0: "0", -1: ""}
    attributes = {name: [text[value] for value in y[:, i].tolist()] for i, name in enumerate(LABELS)}
    return write_labelled_cache(path, [""] * n, embeddings=x, attributes={**attributes, **columns})


def train(cache: Path, columns: tuple[str, ...] = (), **options: object) -> Run:
    return run_experiment(
        cache,
        cache.parent / "run",
        parse_heads(["linear", "mlp:16"]),
        ExperimentConfig(training=QUICK, label_columns=columns, **options),
    )


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("class_weight", "smoothing"), [("none", 0.0), ("balanced", 0.0), ("none", 0.2)])
def test_a_stacked_head_equals_a_plain_loop_over_masked_binary_cross_entropy(
    class_weight: str, smoothing: float
) -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(-1, 2, (90, 3)))
    data = Labelled(torch.from_numpy(rng.standard_normal((90, 6))), y)
    fold = Fold(np.arange(60), np.arange(60, 90))
    config = TrainingConfig(
        epochs=20, patience=20, batch_size=16, schedule="constant", class_weight=class_weight, label_smoothing=smoothing
    )
    specs = [
        parse_head(f"mlp:5,dropout=0,transform=none,{options}") for options in ("lr=0.01", "lr=0.003,weight_decay=0.2")
    ]
    for found in train_heads(specs, data, [fold], 3, config, lambda _, p: np.zeros(len(p))):
        expected = plain_loop(found.spec, data, fold, config, found.best_epoch)
        torch.testing.assert_close(
            torch.cat([v.flatten() for v in found.module[1].state_dict().values()]), expected, rtol=0, atol=1e-9
        )  # type: ignore[index]


def plain_loop(spec: HeadSpec, data: Labelled, fold: Fold, config: TrainingConfig, n_epochs: int) -> torch.Tensor:
    torch.manual_seed(seed_of(f"{config.seed} {spec.name}"))
    module = spec.build(6, 3).double()
    groups = [
        {"params": [p for p in module.parameters() if p.ndim == 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr)
    x, y = data.looks.rows.take(torch.arange(90)), data.y
    std, mean = torch.std_mean(x[fold.train], dim=0, correction=0)
    known, n_with = (y[:60] >= 0).sum(0).double(), (y[:60] == 1).sum(0).double()
    weight_with, weight_without = known / (2 * n_with), known / (2 * (known - n_with))
    batches = Batches([Group(0, 0)], [fold], data.looks.rows, y, MultiLabel(3), config)
    for _ in range(n_epochs):
        for batch in batches.epoch():
            picked = batch.rows[0, : batch.sizes[0]]
            target = (y[picked] == 1).double()
            weight = torch.ones_like(target)
            if config.class_weight == "balanced":
                weight = torch.where(target == 1, weight_with, weight_without)
            weight = weight * (y[picked] >= 0)
            smooth = target * (1 - config.label_smoothing) + config.label_smoothing / 2
            losses = binary_cross_entropy_with_logits(module((x[picked] - mean) / std), smooth, reduction="none")
            loss = (losses * weight).sum() / weight.sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def test_a_batch_of_which_nothing_is_known_changes_nothing() -> None:
    data = Labelled(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.full((40, 2), -1))
    data.y[20:] = torch.tensor([[0, 1], [1, 0]]).repeat(10, 1)
    fold = Fold(np.arange(20), np.arange(20, 40))
    head = train_heads(
        [Linear(weight_decay=0)],
        data,
        [fold],
        2,
        TrainingConfig(epochs=2, batch_size=8),
        lambda _, p: np.zeros(len(p)),
    )[0]
    assert np.isfinite([epoch.train_loss for epoch in head.history]).all()


# -- scores -----------------------------------------------------------------------------------------------------------


def test_labels_are_scored_each_for_itself_without_the_unknown() -> None:
    _, y = drawn()
    p = np.random.default_rng(1).random(y.shape)
    found = scored(y, p, LABELS)
    areas = [roc_auc_score(y[y[:, i] >= 0, i], p[y[:, i] >= 0, i]) for i in range(3)]
    assert list(found["roc_auc_per_class"].values()) == pytest.approx(areas)
    assert found["roc_auc"] == pytest.approx(np.mean(areas))
    known = y >= 0
    assert found["loss"] == pytest.approx(log_loss(y[known], p[known]))
    assert found["accuracy"] == pytest.approx(((p >= 0.5) == (y == 1))[known].mean())
    assert found["n_known_per_class"] == dict(zip(LABELS, known.sum(0).tolist(), strict=True))


def test_each_label_has_all_scores_and_the_run_their_means() -> None:
    _, y = drawn()
    p = np.random.default_rng(1).random(y.shape)
    found = scored(y, p, LABELS)
    for i, label in enumerate(LABELS):
        truth, likely, one = y[y[:, i] >= 0, i], p[y[:, i] >= 0, i], found["per_class"][label]
        assert one["n"] == truth.sum()
        assert one["average_precision"] == pytest.approx(average_precision_score(truth, likely))
        assert one["brier"] == pytest.approx(((likely - truth) ** 2).mean())
        assert one["matthews"] == pytest.approx(matthews_corrcoef(truth, likely >= 0.5))
    for name in ("average_precision", "brier", "balanced_accuracy", "f1", "matthews"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in found["per_class"].values()]))


def test_the_interval_of_one_label_is_delongs() -> None:
    _, y = drawn()
    p = np.random.default_rng(1).random(y.shape)
    rows = y[:, 0] >= 0
    assert macro_auc_ci(y[:, :1], p[:, :1]) == pytest.approx(delong_ci(y[rows, 0], p[rows, 0]))


def test_a_label_with_one_image_is_refused() -> None:
    y = np.zeros((10, 2), np.int64)
    y[:5, 0] = 1
    y[0, 1] = 1
    with pytest.raises(ValueError, match="'mass' has 1 and 9"):
        scored(y, np.full((10, 2), 0.5), ("effusion", "mass"))


# -- from a CSV to the report -----------------------------------------------------------------------------------------


def test_a_csv_with_a_column_for_each_label_needs_no_label_column(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{i}.png" for i in range(4)])
    rows = [["path", "effusion", "mass", "age"], *[[f"{i}.png", str(i % 2), "" if i else "1", "60"] for i in range(4)]]
    dataset = read_dataset(write_csv(tmp_path / "labels.csv", rows))
    assert dataset.labels == [""] * 4
    assert dataset.attributes["effusion"] == ["0", "1", "0", "1"]
    write_csv(tmp_path / "labels.csv", [["path", "age"], ["0.png", "60"], ["1.png", "61"]])
    with pytest.raises(
        DatasetError, match="the column 'label' is missing.*in place of label, one column of 0 and 1 per label"
    ):
        read_dataset(tmp_path / "labels.csv")


def test_an_npz_with_a_column_for_each_label_is_read(tmp_path: Path) -> None:
    y = np.array([[0, 1, 1], [1, 0, 1]] * 4, np.uint8)
    write_npz(tmp_path / "chest.npz", {"train": 8}, train_labels=y)
    dataset = read_dataset(tmp_path / "chest.npz")
    assert {name: "".join(cells) for name, cells in dataset.attributes.items()} == {
        "label 0": "01010101", "label 1": "10101010", "label 2": "11111111",
    }  # fmt: skip
    write_npz(tmp_path / "odd.npz", {"train": 8}, train_labels=y + 1)
    with pytest.raises(DatasetError, match="train_labels has 3 columns, so it must contain only 0 and 1"):
        read_dataset(tmp_path / "odd.npz")


def test_a_run_learns_all_labels_and_reads_back(tmp_path: Path) -> None:
    run = train(write_multilabel_cache(tmp_path / "c.h5"), n_folds=3, with_learning_curve=True)
    facts = run.config.dataset
    assert (facts.is_multilabel, facts.classes, facts.positive) == (True, LABELS, None)
    head = run.head(run.selected)
    assert head.test is not None
    assert min(one.value("roc_auc") for one in head.test.per_class.values()) > 0.8
    again = read_run(tmp_path / "run")
    assert (again.y_true() == run.y_true()).all()
    assert again.predictions.labels == run.predictions.labels
    assert again.heads == run.heads
    assert again.cross_validation == run.cross_validation
    assert [reference.name for reference in run.references][:2] == ["majority class", "logistic regression"]
    assert head.test.value("roc_auc") > run.references[0].test.value("roc_auc")  # type: ignore[union-attr]
    assert "effusion: 0." in train_text(run)


def test_predictions_name_each_label_and_leave_the_unknown_empty(tmp_path: Path) -> None:
    train(write_multilabel_cache(tmp_path / "c.h5"), ("mass", "effusion"))
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    _, y = drawn()
    assert [row["label:mass"] for row in rows] == [{1: "1", 0: "0", -1: ""}[v] for v in y[:, 1].tolist()]
    assert [row["label"] for row in rows[:20]] == [
        "|".join(name for name, i in (("mass", 1), ("effusion", 0)) if y[row, i] == 1) for row in range(20)
    ]
    assert all(0 <= float(row["linear:effusion"]) <= 1 for row in rows)
    assert any(float(row["linear:effusion"]) + float(row["linear:mass"]) > 1.5 for row in rows)


def test_the_report_names_each_label_and_has_no_confusion_matrix_of_all_labels(tmp_path: Path) -> None:
    train(write_multilabel_cache(tmp_path / "c.h5"))
    page = write_report(tmp_path / "run", with_map=False).read_text(encoding="utf-8")
    assert "Which of effusion, mass, nodule" in page
    assert '<h3 id="labels">Labels</h3>' in page
    assert "Confusion matrix of all" not in page


@pytest.mark.parametrize("asked", ["Ge/ho\u0308r", "ge\N{DIVISION SLASH}h\u00f6r", "GE/H\u00d6R"])
def test_a_label_is_found_by_the_name_that_its_csv_has(tmp_path: Path, asked: str) -> None:
    header = ["path", "Ge/ho\u0308r"]  # as macOS writes it
    write_images(tmp_path, [f"{i}.png" for i in range(4)])
    dataset = read_dataset(write_csv(tmp_path / "labels.csv", [header, *([f"{i}.png", str(i % 2)] for i in range(4))]))
    (column,) = dataset.attributes
    cells = ["01"[i % 2] for i in range(40)]
    cache = write_labelled_cache(tmp_path / "c.h5", [""] * 40, attributes={column: cells, "mass": cells})
    assert train(cache, (asked,)).config.dataset.classes == (column,)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (("age",), {}, r"--label age: /0.png has '61'. Expected 1, 0, or an empty cell"),
        (("pneumonia",), {}, "--label pneumonia: the dataset 'phantoms' has no such column. It has: .*effusion"),
        (
            ("rare",),
            {},
            r"The split (train|val) has \d image\(s\) of the label 'rare'\. .*omit the label \(--label\)",
        ),
        ((), {"positive": ["a"]}, "--positive is for one label per image"),
        (None, {}, "has no label column. Its columns effusion, mass, nodule, rare contain 0 and 1: use --multilabel"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    tmp_path: Path, columns: tuple[str, ...] | None, options: dict[str, object], message: str
) -> None:
    rare = ["1"] + ["0"] * 399
    cache = write_multilabel_cache(tmp_path / "c.h5", age=[str(60 + (i + 1) % 2) for i in range(400)], rare=rare)
    with pytest.raises(TrainingError, match=message):
        train(cache, columns, **options)  # type: ignore[arg-type]


def test_a_patient_is_in_one_split_and_every_label_in_each(tmp_path: Path) -> None:
    x, y = drawn(400)
    text = {1: "1", 0: "0", -1: ""}
    attributes = {name: [text[value] for value in y[:, i].tolist()] for i, name in enumerate(LABELS)}
    patients = [f"p{i // 4}" for i in range(400)]
    cache = write_labelled_cache(tmp_path / "c.h5", [""] * 400, embeddings=x, attributes=attributes, patients=patients)
    run = train(cache)
    of_patient: dict[str, set[str]] = {}
    for patient, split in zip(run.predictions.patients, run.predictions.splits, strict=True):
        of_patient.setdefault(patient, set()).add(split)
    assert {len(splits) for splits in of_patient.values()} == {1}
    assert all(count > 1 for by_label in run.config.dataset.counts.values() for count in by_label.values())


def test_patients_who_nearly_all_have_some_label_are_split_all_the_same(tmp_path: Path) -> None:
    has = np.random.default_rng(0).random((120, 3)) < 0.4
    assert (~has.any(axis=1)).sum() > 20  # images without a label are many,
    assert (~has.reshape(40, 9).any(axis=1)).sum() < 3  # patients without one too few for a stratum
    attributes = {name: np.where(has[:, i], "1", "0").tolist() for i, name in enumerate(LABELS)}
    patients = [f"p{i // 3}" for i in range(120)]
    cache = write_labelled_cache(tmp_path / "c.h5", [""] * 120, attributes=attributes, patients=patients)
    assert {*train(cache).config.dataset.n_split} == {"train", "val", "test"}
