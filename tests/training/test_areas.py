"""ROC AUCs on the device that scores are on: the same digits as those of `evaluation`."""

import numpy as np
import pytest
import torch

from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import Fold, Labelled, TrainedHead, TrainingConfig, stack_run, train_heads
from hoarfrost.training.areas import Areas


def labels(n_classes: int, *, multilabel: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_classes)
    if multilabel:
        return torch.randint(-1, 2, (200, n_classes), generator=generator)
    return torch.randint(0, n_classes, (200,), generator=generator)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("decimals", [1, 15])
def test_areas_are_those_of_evaluation_to_the_last_digit(n_classes: int, decimals: int, multilabel: bool) -> None:
    y = labels(n_classes, multilabel=multilabel)
    scores = torch.rand((7, 200, n_classes), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = scores.round(decimals=decimals)  # with ties
    assert Areas.of(y, n_classes)(scores).tolist() == macro_roc_aucs(y.numpy(), scores.numpy()).tolist()


def test_nan_counts_as_zero() -> None:
    y, scores = torch.tensor([0, 1, 0, 1]), torch.full((1, 4, 2), 0.5, dtype=torch.float64)
    scores[0, 1, 1] = torch.nan
    assert (
        Areas.of(y, 2)(scores).tolist() == macro_roc_aucs(y.numpy(), np.nan_to_num(scores.numpy())).tolist() == [0.25]
    )


def test_a_class_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="the ROC AUC of class 2 needs rows with and without it"):
        Areas.of(torch.tensor([0, 1, 1]), 3)


@pytest.mark.parametrize("patience", [2, None])
def test_training_on_a_simulated_device_has_the_same_history(
    monkeypatch: pytest.MonkeyPatch, patience: int | None
) -> None:
    assert trained(patience) == trained(patience)
    on_host = trained(patience)
    monkeypatch.setattr(stack_run, "is_host", lambda _: False)
    assert trained(patience) == on_host


def trained(patience: int | None) -> list[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 8, generator=generator) + torch.nn.functional.one_hot(y, 8)
    rows = np.arange(90)
    folds = [Fold(rows[rows % 5 != fold], rows[rows % 5 == fold]) for fold in range(2)]
    config = TrainingConfig(epochs=8, patience=patience, batch_size=16, seeds=2)
    specs = parse_heads(["mlp:8,dropout=0.3", "mlp:8,dropout=0.3,lr=0.01"])
    found: list[TrainedHead] = train_heads(specs, Labelled(x, y), folds, 3, config, macro_roc_aucs)
    return [(one.spec, one.seed, one.fold, one.best_epoch, one.history) for one in found]
