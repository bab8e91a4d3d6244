"""Training: reproducible, each head independent, no leaks, and the result is the best epoch."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hoarfrost.evaluation import roc_auc
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.specs import parse_head
from hoarfrost.training import Labelled, TrainedHead, TrainingConfig
from tests.support.commands import NumberOfThreads, RunPython
from tests.support.one_head import train_head
from tests.support.predicting import predict_probabilities

QUICK = TrainingConfig(epochs=6, batch_size=32)


def binary_roc_auc(y_true: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    return roc_auc(y_true, probabilities[:, 1])


def drawn(n: int, *, distance: float = 1.0, seed: int = 0, shift: float = 0.0) -> Labelled:
    """Draw embeddings (n, 16) of two classes, `distance` apart along each feature, in units of very different size."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 16, generator=generator) + (y[:, None] - 0.5) * distance + shift
    return Labelled(x * torch.logspace(-2, 2, 16), y)


def trained(
    head: str = "linear,transform=none",
    train: Labelled | None = None,
    val: Labelled | None = None,
    config: TrainingConfig = QUICK,
) -> TrainedHead:
    return train_head(parse_head(head), train or drawn(96), val or drawn(40, seed=1), 2, config, binary_roc_auc)


def weights(head: TrainedHead) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in head.module.state_dict().items()}


@pytest.mark.parametrize("head", ["linear", "mlp:8x2", "mlp:8x2,dropout=0.5"])
def test_same_seed_gives_the_same_head_to_the_last_digit(head: str) -> None:
    first, second = trained(head), trained(head)
    assert first.history == second.history
    assert weights(first) == weights(second)


@pytest.mark.parametrize("head", ["linear", "mlp:256x2,dropout=0.5", "logistic,C=1", "quadratic,C=1"])
def test_number_of_threads_changes_nothing_and_is_left_as_it_was(n_threads: NumberOfThreads, head: str) -> None:
    found = []
    for count in (1, 2):
        n_threads(count)
        found.append(weights(trained(head)))
        assert torch.get_num_threads() == count
    assert found[0] == found[1]


@pytest.mark.parametrize("head", ["linear", "mlp:8,dropout=0.5"])
def test_another_seed_gives_another_head(head: str) -> None:
    assert weights(trained(head)) != weights(trained(head, config=replace(QUICK, seed=1)))


@pytest.mark.parametrize("head", ["linear", "mlp:8", "mlp:8,dropout=0.5"])
def test_result_does_not_depend_on_the_heads_trained_before(head: str) -> None:
    alone = trained(head)
    trained("mlp:4x2,dropout=0.2")
    assert weights(trained(head)) == weights(alone)


def test_result_does_not_depend_on_torchs_global_generator_nor_moves_it() -> None:
    torch.manual_seed(1)
    first, left_by_first = trained("mlp:8,dropout=0.5"), torch.get_rng_state()
    torch.manual_seed(2)
    second, left_by_second = trained("mlp:8,dropout=0.5"), torch.get_rng_state()
    assert weights(first) == weights(second)
    torch.manual_seed(1)
    assert (left_by_first == torch.get_rng_state()).all()
    torch.manual_seed(2)
    assert (left_by_second == torch.get_rng_state()).all()


def test_weight_decay_shrinks_matrices_and_leaves_biases() -> None:
    # Embeddings that say nothing: the loss moves the bias alone, to the classes' log odds, and decay the matrix alone.
    y = (torch.arange(100) >= 80).long()
    nothing = Labelled(torch.zeros(100, 16), y)
    config = TrainingConfig(epochs=300, patience=300, batch_size=100, label_smoothing=0)
    layer = trained("linear,lr=0.05,weight_decay=5", nothing, nothing, config).module[1][0]  # type: ignore[index]
    assert layer.weight.abs().max() < 1e-12
    assert float((layer.bias[1] - layer.bias[0]).detach()) == pytest.approx(np.log(20 / 80), abs=1e-3)


def test_standardisation_uses_the_training_split_alone() -> None:
    train = drawn(96)
    standardise = trained(train=train, val=drawn(40, seed=1, shift=100.0)).module[0]  # type: ignore[index]
    x = train.x.double()
    torch.testing.assert_close(standardise.mean, x.mean(dim=0).float())
    torch.testing.assert_close(standardise.std, x.std(dim=0, correction=0).float())


def test_embeddings_are_seen_standardised() -> None:
    # Features that differ in size by four orders of magnitude: without standardisation the small ones are lost.
    train = drawn(96)
    scaled = Labelled(train.x * torch.logspace(3, -3, 16), train.y)
    val = drawn(40, seed=1)
    scaled_val = Labelled(val.x * torch.logspace(3, -3, 16), val.y)
    losses = [trained(train=a, val=b).history[-1].val_loss for a, b in ((train, val), (scaled, scaled_val))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_feature_gives_no_nan_and_no_giant_where_it_is_not_constant(constant: float) -> None:
    train = drawn(96)
    x = train.x.clone()
    x[:, 3] = constant
    x[::2, 3] = float(np.nextafter(np.float32(constant), np.float32(np.inf)))  # constant but for float32's last digit
    head = trained(train=Labelled(x, train.y), val=Labelled(x, train.y))
    other = x.clone()
    other[:, 3] += 1
    standardised = head.module[0](other)  # type: ignore[index]
    assert standardised[:, 3].abs().max() < 10
    assert np.isfinite(predict_probabilities(head.module, other)).all()


def overfitting() -> tuple[Labelled, Labelled]:
    """Return training rows that can be learnt by heart, and validation rows that these hardly predict."""
    generator = torch.Generator().manual_seed(3)
    train = drawn(24, distance=0.3)
    return replace(train, y=torch.randint(0, 2, (24,), generator=generator)), drawn(40, distance=0.3, seed=1)


def test_best_epoch_is_restored_not_the_last() -> None:
    train, val = overfitting()
    longer = trained(
        "mlp:32,lr=0.01", train, val, TrainingConfig(epochs=30, patience=30, schedule="constant", batch_size=64)
    )
    losses = [epoch.val_loss for epoch in longer.history]
    assert longer.best_epoch == int(np.argmin(losses)) + 1 < len(losses) == 30
    stopped_there = trained(
        "mlp:32,lr=0.01",
        train,
        val,
        TrainingConfig(epochs=longer.best_epoch, patience=30, schedule="constant", batch_size=64),
    )
    assert weights(longer) == weights(stopped_there)
    assert (predict_probabilities(longer.module, val.x) == predict_probabilities(stopped_there.module, val.x)).all()


def test_history_tells_the_validation_loss_and_auc_of_the_restored_epoch() -> None:
    train, val = overfitting()
    head = trained("mlp:32,lr=0.01", train, val)
    best = head.history[head.best_epoch - 1]
    with torch.no_grad():
        assert best.val_loss == pytest.approx(float(cross_entropy(head.module(val.x), val.y)), rel=1e-6)
    assert best.val_roc_auc == binary_roc_auc(val.y.numpy(), predict_probabilities(head.module, val.x))


@pytest.mark.parametrize("patience", [1, 3, 7])
def test_training_stops_after_patience_epochs_without_a_better_one(patience: int) -> None:
    train, val = overfitting()
    head = trained("mlp:32,lr=0.05", train, val, TrainingConfig(epochs=60, patience=patience, schedule="cosine"))
    assert len(head.history) == head.best_epoch + patience < 60
    assert not head.module.training


def test_training_goes_on_to_the_last_epoch_while_validation_gets_better() -> None:
    head = trained("linear,lr=1e-4", config=TrainingConfig(epochs=15, patience=2))
    assert head.best_epoch == len(head.history) == 15


@pytest.mark.parametrize("head", ["linear,lr=1e30", "mlp:8x4,lr=1e10", "linear,weight_decay=1e300"])
def test_learning_rate_that_explodes_is_a_clear_error(head: str) -> None:
    with pytest.raises(
        TrainingError,
        match=r"the loss is not a finite number in epoch \d+\. Lower the learning rate \(lr=\) or the weight decay",
    ):
        trained(head)


def test_separable_data_reaches_an_auc_of_one() -> None:
    head = trained(train=drawn(96, distance=6), val=drawn(40, distance=6, seed=1), config=TrainingConfig(epochs=20))
    test = drawn(60, distance=6, seed=2)
    assert binary_roc_auc(test.y.numpy(), predict_probabilities(head.module, test.x)) == 1.0


def test_training_equals_a_plain_loop_of_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = nn.Linear(16, 2)
    nn.init.constant_(begun.weight, 0.01)
    nn.init.zeros_(begun.bias)
    monkeypatch.setattr("hoarfrost.heads.kinds.Linear.build", lambda *_: nn.Sequential(deepcopy(begun)))
    y = (torch.arange(96) < 30).long()  # uneven, so that the bias has somewhere to go
    train = replace(drawn(96), y=y)
    config = TrainingConfig(
        epochs=5, patience=5, batch_size=96, schedule="constant", label_smoothing=0
    )  # one batch an epoch: no order to agree on
    head = trained("linear,lr=0.01,weight_decay=0.1,transform=none", train, train, config)

    x = (train.x - train.x.mean(dim=0)) / train.x.std(dim=0, correction=0)
    optimizer = torch.optim.AdamW(
        [{"params": [begun.weight], "weight_decay": 0.1}, {"params": [begun.bias], "weight_decay": 0.0}], lr=0.01
    )
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(begun(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert head.best_epoch == 5
    torch.testing.assert_close(head.module[1][0].weight, begun.weight)  # type: ignore[index]
    torch.testing.assert_close(head.module[1][0].bias, begun.bias)  # type: ignore[index]


def test_probabilities_are_of_every_class_and_sum_to_one() -> None:
    y = torch.arange(90) % 3
    part = Labelled(drawn(90).x, y)
    head = train_head(parse_head("mlp:8"), part, part, 3, QUICK, lambda *_: 0.5)
    probabilities = predict_probabilities(head.module, part.x)
    assert probabilities.shape == (90, 3)
    assert probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(90), abs=1e-12)


def test_predicting_does_not_depend_on_which_other_rows_are_predicted() -> None:
    head = trained("mlp:8,dropout=0.5")
    x: Tensor = drawn(40, seed=1).x
    together = predict_probabilities(head.module, x)
    alone = np.concatenate([predict_probabilities(head.module, row[None]) for row in x])
    assert together == pytest.approx(alone, abs=1e-6)


@pytest.mark.slow
def test_training_opens_no_file(run_python: RunPython) -> None:
    code = """
import os, sys, torch
from hoarfrost.heads.specs import parse_head
from hoarfrost.training import Labelled, TrainingConfig
from tests.support.one_head import train_head
from tests.support.predicting import predict_probabilities
data = Labelled(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)
def train():
    head = train_head(parse_head("mlp:8"), data, data, 2, TrainingConfig(epochs=2), lambda *_: 0.5)
    predict_probabilities(head.module, data.x)
train()  # what torch itself loads at first use
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
train()
print([path for path in opened if not str(path).startswith(os.path.dirname(torch.__file__))])
"""
    assert run_python("-c", code) == (0, "[]\n", "")
