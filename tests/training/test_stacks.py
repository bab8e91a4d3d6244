"""Stacked training: each head equals the one trained alone, and the one from a plain loop over torch's AdamW."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec, Linear
from hoarfrost.heads.specs import cross_heads, parse_head, parse_heads
from hoarfrost.training import Fold, Labelled, TrainedHead, TrainingConfig, train_heads
from hoarfrost.training.batches import Batches, Group, seed_of
from hoarfrost.training.objective import SingleLabel
from hoarfrost.training.stack import Member, Stack

N_FEATURES = 12
KEYS = ("lr", "weight_decay", "dropout")
CONFIG = TrainingConfig(epochs=20, patience=20, batch_size=16, seeds=2)
VARIANTS = [
    *cross_heads(parse_heads(["linear", "mlp:8x2,dropout=0"]), ["lr=1e-3,1e-2", "weight_decay=0,0.3"]),
    *parse_heads(["mlp:8x2,dropout=0.4", "mlp:5", "mlp:5,transform=unit"]),
]


def drawn(n: int = 120, n_classes: int = 2, seed: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    x = torch.randn(n, N_FEATURES, generator=generator, dtype=torch.float64)
    x[:, :n_classes] += nn.functional.one_hot(y, n_classes)
    return Labelled(x * torch.logspace(-1, 1, N_FEATURES, dtype=torch.float64), y)


def folds_of(n: int, n_folds: int = 3) -> list[Fold]:
    """Folds of one size: training rows, validation rows, and the rest held out."""
    parts = np.array_split(np.random.default_rng(0).permutation(n), 3 * n_folds)
    return [
        Fold(np.concatenate([parts[(i + j) % len(parts)] for j in range(5)]), parts[(i + 6) % len(parts)])
        for i in range(n_folds)
    ]


def no_aucs(_: object, probabilities: np.ndarray) -> np.ndarray:
    return np.full(len(probabilities), 0.5)


def train(
    specs: Sequence[HeadSpec], data: Labelled, folds: Sequence[Fold], config: TrainingConfig = CONFIG
) -> list[TrainedHead]:
    return train_heads(specs, data, folds, int(data.y.max()) + 1, config, no_aucs)


def weights(head: TrainedHead) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in head.module.state_dict().values()])


# With a patience of 2, heads stop at different epochs and leave the stack.
@pytest.mark.parametrize(
    ("n_classes", "patience"),
    [(3, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 2), (2, 20), (3, 20)))],
)
def test_a_stacked_head_equals_the_same_head_trained_alone(n_classes: int, patience: int) -> None:
    data, folds = drawn(n_classes=n_classes), folds_of(120)
    config = replace(CONFIG, patience=patience)
    together = train(VARIANTS, data, folds, config)
    assert [(head.spec, head.seed, head.fold) for head in together] == [
        (spec, seed, fold) for spec in VARIANTS for seed in (0, 1) for fold in range(3)
    ]
    for head in together:
        alone = train([head.spec], data, [folds[head.fold]], replace(config, seed=head.seed, seeds=1))[0]
        torch.testing.assert_close(weights(head), weights(alone), rtol=0, atol=1e-9)
        assert (head.best_epoch, len(head.history)) == (alone.best_epoch, len(alone.history))
    lengths = {len(head.history) for head in together}
    assert (len(lengths) > 3) == (patience == 2)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize(("class_weight", "label_smoothing"), [("none", 0.0), ("balanced", 0.0), ("balanced", 0.1)])
@pytest.mark.parametrize("head", ["linear,lr=0.01,weight_decay=0.1", "mlp:8x2,lr=0.003,dropout=0,transform=none"])
def test_a_stacked_head_equals_a_plain_loop(
    head: str, class_weight: str, label_smoothing: float, schedule: str
) -> None:
    data = drawn()
    data = replace(data, y=(torch.arange(120) % 5 == 0).long())  # uneven classes
    fold, spec = folds_of(120)[0], parse_head(head)
    config = replace(
        CONFIG, epochs=6, seeds=1, schedule=schedule, class_weight=class_weight, label_smoothing=label_smoothing
    )
    found = train([spec, *VARIANTS], data, [fold], config)[0]
    losses = [epoch.val_loss for epoch in found.history]
    torch.testing.assert_close(
        weights(found)[2 * N_FEATURES :], plain_loop(spec, data, fold, config, int(np.argmin(losses)) + 1), rtol=0, atol=1e-9
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_the_class_to_the_last_bit(dtype: torch.dtype) -> None:
    """The function of torch's fused AdamW is called without its class, whose import takes more than a second."""
    spec = parse_head("mlp:8x2,lr=0.01,weight_decay=0.3,dropout=0")
    torch.manual_seed(0)
    modules = [spec.build(N_FEATURES, 3).to(dtype) for _ in range(4)]
    stack = Stack([Member(spec, seed, 0) for seed in range(4)], modules, 1)
    copies = [value.detach().clone().requires_grad_() for value in stack.parameters]
    groups = [
        {"params": [one for one in copies if one.shape[1] > 1], "weight_decay": spec.weight_decay},
        {"params": [one for one in copies if one.shape[1] == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, fused=True)
    for step in range(20):
        gradients = [torch.randn_like(value) * 10.0 ** -(step % 5) for value in copies]
        losses = torch.stack([(a * b).sum() for a, b in zip(stack.parameters, gradients, strict=True)])
        stack.step(losses, 1.0)
        for value, gradient in zip(copies, gradients, strict=True):
            value.grad = gradient
        optimizer.step()
    assert all(map(torch.equal, stack.parameters, copies))


def plain_loop(spec: HeadSpec, data: Labelled, fold: Fold, config: TrainingConfig, n_epochs: int) -> torch.Tensor:
    """Train one head in a plain loop, on the same initial weights and batches; return its weights."""
    torch.manual_seed(seed_of(f"{config.seed} {spec.name}"))
    module = spec.build(N_FEATURES, 2).double()
    matrices = [parameter for parameter in module.parameters() if parameter.ndim == 2]
    biases = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr)
    rows = torch.from_numpy(fold.train)
    x = data.looks.rows.take(torch.arange(len(data.y)))
    x = {"none": x, "sqrt": x.sign() * x.abs().sqrt()}[spec.transform]
    std, mean = torch.std_mean(x[rows], dim=0, correction=0)
    counts = torch.bincount(data.y[rows], minlength=2)
    weight = len(rows) / (2 * counts.double()) if config.class_weight == "balanced" else None
    batches = Batches([Group(config.seed, 0)], [fold], data.looks.rows, data.y, SingleLabel(2), config)
    n_steps = (config.epochs or 0) * batches.n_steps
    n_warm, step = max(1, round(0.05 * n_steps)), 0
    one_cycle = OneCycleLR(torch.optim.AdamW([torch.zeros(1)], lr=spec.lr), max_lr=spec.lr, total_steps=n_steps)
    for _ in range(n_epochs):
        for batch in batches.epoch():
            picked = batch.rows[0, : batch.sizes[0]]
            falling = 0.5 * (1 + np.cos(np.pi * (step - n_warm) / (n_steps - n_warm)))
            rate = {
                "constant": spec.lr,
                "cosine": spec.lr * ((step + 1) / n_warm if step < n_warm else falling),
                "one-cycle": one_cycle.get_last_lr()[0],
            }[config.schedule]
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = cross_entropy(
                module((x[picked] - mean) / std), data.y[picked], weight, label_smoothing=config.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            one_cycle.optimizer.step()
            if step < n_steps:
                one_cycle.step()
    return torch.cat([tensor.flatten() for tensor in module.state_dict().values()])


def test_every_training_row_is_in_one_batch_of_an_epoch_and_no_other_row_is() -> None:
    folds = [Fold(np.arange(0, 50), np.arange(50, 60)), Fold(np.arange(20, 63), np.arange(63, 70))]
    batches = Batches([Group(0, 0), Group(0, 1)], folds, drawn().looks.rows, drawn().y, SingleLabel(2), CONFIG)
    steps = list(batches.epoch())
    assert len(steps) == 4
    for place, fold in enumerate(folds):
        seen = torch.cat([batch.rows[place, : batch.sizes[place]] for batch in steps])
        assert sorted(seen.tolist()) == fold.train.tolist()
        for batch in steps:
            assert batch.targets[place].sum().item() == pytest.approx(1)
            assert (batch.targets[place, batch.sizes[place] :] == 0).all()


def test_orders_differ_between_epochs_and_seeds_but_not_by_who_else_is_there() -> None:
    fold = Fold(np.arange(50), np.arange(50, 60))

    def rows(groups: Sequence[Group], seed: int) -> list[list[int]]:
        batches = Batches(groups, [fold], drawn().looks.rows, drawn().y, SingleLabel(2), CONFIG)
        place = list(groups).index(Group(seed, 0))
        return [torch.cat([b.rows[place, : b.sizes[place]] for b in batches.epoch()]).tolist() for _ in range(2)]

    both = [Group(0, 0), Group(1, 0)]
    first, second = rows(both, 0)
    assert first != second
    assert rows(both, 0) == rows([Group(0, 0)], 0) == rows(both[::-1], 0)
    assert rows(both, 0) != rows(both, 1)


def test_heads_whose_loss_explodes_are_left_out_and_the_others_are_as_ever() -> None:
    data, folds = drawn(), folds_of(120, 1)
    sound, exploding = parse_head("linear"), parse_head("linear,lr=1e300")
    alone = train([sound], data, folds)
    together = train([exploding, sound], data, folds)
    assert [head.spec for head in together] == [sound, sound]
    torch.testing.assert_close(weights(together[0]), weights(alone[0]), rtol=0, atol=1e-9)
    with pytest.raises(TrainingError, match="linear,lr=1e[+]?300: the loss is not a finite number"):
        train([exploding], data, folds)


def test_each_head_has_its_own_number_of_seeds_and_learns_what_it_would_alone() -> None:
    data, folds = drawn(), folds_of(120, 2)
    one, other, third = parse_heads(["linear", "linear,lr=0.01", "mlp:5"])
    config = replace(CONFIG, epochs=3, seed=7)
    found = train_heads([one, other, third], data, folds, 2, config, no_aucs, n_seeds={other: 3, third: 1})
    assert [(head.spec, head.seed, head.fold) for head in found] == [
        (spec, seed, fold)
        for spec, n in ((one, 2), (other, 3), (third, 1))
        for seed in range(7, 7 + n)
        for fold in (0, 1)
    ]
    for head in found:
        alone = train([head.spec], data, [folds[head.fold]], replace(config, seed=head.seed, seeds=1))[0]
        torch.testing.assert_close(weights(head), weights(alone), rtol=0, atol=1e-9)


def test_without_patience_every_head_is_that_of_its_last_epoch() -> None:
    data, fold = drawn(), folds_of(120)[0]
    config = replace(CONFIG, epochs=12, seeds=1, patience=None, label_smoothing=0.0)
    for head in train([Linear(lr=0.1), Linear(lr=0.3)], data, [fold], config):
        assert (head.best_epoch, len(head.history)) == (12, 12)
        torch.testing.assert_close(
            weights(head)[2 * N_FEATURES :], plain_loop(head.spec, data, fold, config, 12), rtol=0, atol=1e-9
        )


def test_learning_rates_of_the_history_follow_the_schedule() -> None:
    config = replace(CONFIG, epochs=10, schedule="cosine")
    rates = [epoch.learning_rate for epoch in train([Linear(lr=0.5)], drawn(), folds_of(120, 1), config)[0].history]
    assert rates == sorted(rates, reverse=True)
    assert 0 <= rates[-1] < 0.01 < rates[0] <= 0.5


# -- the grid -----------------------------------------------------------------------------------------------------------


def test_a_grid_crosses_every_head() -> None:
    specs = cross_heads(parse_heads(["linear", "mlp:8"]), ["lr=1e-4,1e-2", "weight_decay=0,0.2"])
    assert [spec.name for spec in specs] == [
        f"{head},lr={lr},weight_decay={decay}"
        for head in ("linear", "mlp:8")
        for lr in ("0.0001", "0.01")
        for decay in ("0", "0.2")
    ]


def test_a_grid_of_dropout_leaves_one_linear_head() -> None:
    specs = cross_heads(parse_heads(["linear", "mlp:8"]), ["dropout=0,0.2"])
    assert [spec.name for spec in specs] == ["linear", "mlp:8,dropout=0", "mlp:8,dropout=0.2"]


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        (
            ["epochs=1,2"],
            "--grid epochs=1,2: expected one of C, dropout, layers, lr, members, transform, views, weight_decay",
        ),
        (["lr"], "--grid lr: expected one of"),
        (["lr=1e-3,"], "--grid lr: lr= is not a number"),
        (["lr=0"], "--grid lr: lr must be above 0, not 0"),
        (["lr=1", "lr=2"], "--grid lr=2: lr has another grid already"),
        (["lr=" + ",".join(f"{i + 1}" for i in range(10_001))], "--grid: more than 10,000 variants. Use fewer"),
        ([f"{key}=" + ",".join(f"0.{i + 1:04d}" for i in range(5_000)) for key in KEYS], "more than 10,000 variants"),
    ],
)
def test_what_is_no_grid_is_refused(grids: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        cross_heads(parse_heads(["mlp:8"]), grids)
