"""Every kind of head: in a stack it computes the same as its module, and learns the same as alone in a plain loop."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import KINDS, HeadSpec, Mlp, Penalised
from hoarfrost.heads.specs import cross_heads, parse_heads
from hoarfrost.training.batches import seed_of
from hoarfrost.training.stack import Member, Stack
from tests.support.new_kinds import NEW_KINDS, Gelu
from tests.training.test_stacks import CONFIG, N_FEATURES, drawn, folds_of, plain_loop, train, weights

SMALL = {
    "linear": ["linear"],
    "mlp": ["mlp:8x2,dropout=0", "mlp:8x2,dropout=0.4"],
    "gelu": ["gelu:8x2,dropout=0", "gelu:8x2,dropout=0.4"],
    "narrow": ["narrow", "narrow,dropout=0"],
    "kernel": ["kernel", "kernel,gamma=0.1"],
}
STACKED = {word for word, kind in KINDS.items() if not issubclass(kind, Penalised)}  # the others: test_penalised.py
ALL_KINDS = sorted(STACKED | NEW_KINDS.keys())


@pytest.fixture(autouse=True)
def _new_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, kind in NEW_KINDS.items():
        monkeypatch.setitem(KINDS, word, kind)


def variants(kind: str, grids: tuple[str, ...] = ("lr=1e-3,1e-2", "weight_decay=0,0.3")) -> list[HeadSpec]:
    return cross_heads(parse_heads(SMALL[kind]), grids)


def stacks(kind: str) -> Iterator[tuple[Stack, list[nn.Sequential]]]:
    """Stack heads of two groups that differ in their weights, in float64."""
    by_key: dict[object, list[HeadSpec]] = {}
    for spec in variants(kind):
        by_key.setdefault(spec.stack_key, []).append(spec)
    for specs in by_key.values():
        members = [Member(spec, seed, 0) for seed in (0, 1) for spec in specs]
        modules = [member.spec.build(N_FEATURES, 3).double() for member in members]
        yield Stack(members, modules, 2), modules


def with_drawn_dropout(module: nn.Sequential, member: Member, x: Tensor) -> Tensor:
    """Apply a module as in training, its dropout drawn by the head's own generator."""
    generator = torch.Generator().manual_seed(seed_of(f"dropout {member.seed} {member.spec.name}"))
    for layer in module:
        if isinstance(layer, nn.Dropout):
            drawn_there = torch.rand(x.shape, generator=generator, dtype=torch.get_default_dtype())
            x = x * (drawn_there >= layer.p).to(x.dtype) / (1 - layer.p)
        else:
            x = layer(x)
    return x


def test_every_kind_is_tested_here() -> None:
    assert SMALL.keys() == STACKED | NEW_KINDS.keys()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_stacked_forward_is_that_of_each_module(kind: str) -> None:
    x = torch.randn(2, 7, N_FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for stack, modules in stacks(kind):
        in_use, in_training = stack.logits(x), stack.logits(x, sizes=[7, 7])
        assert in_use.shape == (len(modules), 7, 3)
        for place, (member, module) in enumerate(zip(stack.members, modules, strict=True)):
            inputs = x[place * 2 // len(modules)]
            torch.testing.assert_close(in_use[place], module.eval()(inputs), rtol=0, atol=1e-9)
            wanted = with_drawn_dropout(module, member, inputs)
            torch.testing.assert_close(in_training[place], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_head_out_of_the_stack_is_the_module_that_went_in(kind: str) -> None:
    for stack, modules in stacks(kind):
        for place, module in enumerate(modules):
            found = stack.best_module(place, N_FEATURES, 3).state_dict()
            assert found.keys() == module.state_dict().keys()
            assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_head_learns_in_a_stack_what_it_learns_alone(kind: str) -> None:
    data, folds, config = drawn(n_classes=3), folds_of(120, 2), replace(CONFIG, epochs=10, patience=2)
    for head in train(variants(kind), data, folds, config):
        alone = train([head.spec], data, [folds[head.fold]], replace(config, seed=head.seed, seeds=1))[0]
        torch.testing.assert_close(weights(head), weights(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_head_learns_in_a_stack_what_a_plain_loop_teaches_it(kind: str) -> None:
    data, fold, config = drawn(), folds_of(120)[0], replace(CONFIG, epochs=5, seeds=1, label_smoothing=0.0)
    compared = [spec for spec in variants(kind) if not spec.values().get("dropout")]
    assert compared
    for head in train(compared, data, [fold], config):
        n_epochs = int(np.argmin([epoch.val_loss for epoch in head.history])) + 1
        wanted = plain_loop(head.spec, data, fold, config, n_epochs)
        torch.testing.assert_close(weights(head)[2 * N_FEATURES :], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_heads_with_one_learning_rate_and_decay_learn_as_those_of_a_grid(kind: str) -> None:
    data, folds, config = drawn(n_classes=3), folds_of(120, 1), replace(CONFIG, epochs=5)
    of_grid = train(variants(kind), data, folds, config)
    for spec in variants(kind, ("lr=1e-2", "weight_decay=0.3")):
        alone = train([spec], data, folds, config)  # AdamW moves the parameters themselves, not directions
        for one, other in zip(alone, [head for head in of_grid if head.spec == spec], strict=True):
            torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-9)


# -- what is refused ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Undeclared(Mlp):
    """An mlp whose module has GELU, which its kind does not declare: once it was silently trained with ReLU."""

    KIND: ClassVar[str] = "undeclared"

    def build(self, n_inputs: int, n_classes: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(n_inputs, self.width), nn.GELU(), nn.Linear(self.width, n_classes))


def test_a_layer_that_the_kind_does_not_declare_is_refused_and_never_trained_as_another() -> None:
    with pytest.raises(TrainingError, match=r"undeclared:8: heads with the layer GELU\(approximate='none'\) cannot"):
        train([Undeclared(width=8)], drawn(), folds_of(120))


def frozen() -> nn.Sequential:
    return nn.Sequential(nn.Linear(N_FEATURES, 3).requires_grad_(False), nn.GELU("tanh"), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(N_FEATURES, 2)), "the layer Dropout(p=0.5"),
        (lambda: nn.Sequential(nn.Linear(N_FEATURES, 2, bias=False)), "the layer Linear(in_features=12"),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(N_FEATURES, 2))), "the layer Sequential("),
        (lambda: nn.Sequential(nn.Linear(N_FEATURES, 2), nn.GELU("none"), nn.Bilinear(2, 2, 2)), "the layer Bilinear("),
        (lambda: nn.Sequential(nn.GELU("tanh")), "the module has no nn.Linear, so there is nothing to train"),
        (frozen, "the layer Linear(in_features=12"),
    ],
)
def test_a_module_that_cannot_be_stacked_is_refused(
    monkeypatch: pytest.MonkeyPatch, make: object, message: str
) -> None:
    monkeypatch.setattr(Gelu, "build", lambda *_: make())  # type: ignore[operator]
    with pytest.raises(
        TrainingError, match=re.escape(f"gelu:8: {'heads with ' if 'layer' in message else ''}{message}")
    ):
        train([Gelu(width=8)], drawn(), folds_of(120))


def test_constants_that_differ_between_heads_of_a_stack_are_refused() -> None:
    members = [Member(spec, 0, 0) for spec in parse_heads(["kernel", "kernel,gamma=0.1"])]
    modules = [member.spec.build(N_FEATURES, 2) for member in members]
    with pytest.raises(TrainingError, match="all heads of one shape must have the same constants"):
        Stack(members, modules, 1)
    with pytest.raises(TrainingError, match="all heads of one shape must have the same constants"):
        Stack(members, [nn.Sequential(nn.GELU(way), nn.Linear(2, 2)) for way in ("tanh", "none")], 1)
