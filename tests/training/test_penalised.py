"""Penalised heads: the same minimum as scikit-learn's, found for all C at once, from few rows or many."""

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads import layers
from hoarfrost.heads.kinds import Logistic, Mlp, Penalised, Quadratic
from hoarfrost.heads.layers import transformed, unit_length
from hoarfrost.training import (
    Fold,
    HeldRows,
    Labelled,
    StreamedRows,
    TrainedHead,
    TrainingConfig,
    penalised,
    train_heads,
)
from hoarfrost.training.penalised import problem_of, solve, stratified
from tests.support.predicting import predict_probabilities
from tests.training.test_stacks import no_aucs

N, N_FEATURES = 150, 12
CONFIG = TrainingConfig(label_smoothing=0.3, seeds=3)  # what does not concern penalised heads is ignored
CS = (1e-3, 0.1, 1.0, 30.0)


def drawn(n_classes: int, n: int = N) -> Labelled:
    """Draw positive embeddings of uneven classes."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(n, generator=generator) ** 2 * n_classes).long()
    x = torch.randn(n, N_FEATURES, generator=generator)
    x[:, :n_classes] += 1.5 * torch.nn.functional.one_hot(y, n_classes)
    return Labelled(x.abs() * torch.logspace(-1, 2, N_FEATURES), y)


def fold_of(n: int = N) -> Fold:
    rows = np.random.default_rng(1).permutation(n)
    return Fold(rows[n // 3 :], rows[: n // 3])


def fitted(
    specs: list[Penalised], data: Labelled, fold: Fold, config: TrainingConfig = CONFIG, n_classes: int = 0
) -> list[TrainedHead]:
    return train_heads(specs, data, [fold], n_classes or int(data.y.max()) + 1, config, no_aucs)


def standardised(data: Labelled, fold: Fold, transform: str = "sqrt") -> npt.NDArray[np.float64]:
    """Transform and standardise all rows by the training rows, without the product's code."""
    x = data.looks.rows.take(torch.arange(len(data.y))).double().numpy()
    x = {"sqrt": np.sqrt, "none": np.array, "unit": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)}[transform](
        x
    )
    found: npt.NDArray[np.float64] = (x - x[fold.train].mean(0)) / x[fold.train].std(0)
    return found


def reference(
    z: npt.NDArray[np.float64],
    y: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    c: float,
    weight: str | None = None,
) -> npt.NDArray[np.float64]:
    model = LogisticRegression(C=c, class_weight=weight, tol=1e-10, max_iter=20_000).fit(z[rows], y[rows])
    return np.asarray(model.predict_proba(z))


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_logistic_head_is_scikit_learns_for_each_c(n_classes: int, class_weight: str) -> None:
    data, fold = drawn(n_classes), fold_of()
    heads = fitted([Logistic(C=c) for c in CS], data, fold, replace(CONFIG, class_weight=class_weight))
    assert [(head.seed, head.fold, head.history, head.best_epoch) for head in heads] == [(0, 0, (), 0)] * len(CS)
    z, y = standardised(data, fold), data.y.numpy()
    for c, head in zip(CS, heads, strict=True):
        wanted = reference(z, y, fold.train, c, None if class_weight == "none" else "balanced")
        assert predict_probabilities(head.module, data.x) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("transform", ["none", "unit"])
def test_a_transform_comes_before_everything_else(transform: str) -> None:
    data, fold = drawn(2), fold_of()
    head = fitted([Logistic(C=1.0, transform=transform)], data, fold)[0]
    wanted = reference(standardised(data, fold, transform), data.y.numpy(), fold.train, 1.0)
    assert predict_probabilities(head.module, data.x) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_each_of_several_labels_is_scikit_learns_on_the_images_where_it_is_known(class_weight: str) -> None:
    classes, fold = drawn(3), fold_of()
    y = torch.nn.functional.one_hot(classes.y, 3)
    y[::7, 1] = -1
    data = Labelled(classes.x, y)
    config = replace(CONFIG, class_weight=class_weight)
    heads = fitted([Logistic(C=c) for c in CS], data, fold, config, n_classes=3)
    z = standardised(data, fold)
    for c, head in zip(CS, heads, strict=True):
        found = predict_probabilities(head.module, data.x, multilabel=True)
        for label in range(3):
            rows = fold.train[y[fold.train, label].numpy() >= 0]
            weight = None if class_weight == "none" else "balanced"
            wanted = reference(z, y[:, label].numpy(), rows, c, weight)[:, 1]
            assert found[:, label] == pytest.approx(wanted, abs=1e-4)


def quadratic_terms(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the features whose scalar products are the kernel: (1/2 + u'v)^2 = 1/4 + u'v + (u'v)^2."""
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    return np.hstack([u, (u[:, :, None] * u[:, None]).reshape(len(u), -1)])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_quadratic_head_is_logistic_regression_on_all_products(n_classes: int) -> None:
    data, fold = drawn(n_classes), fold_of()
    heads = fitted([Quadratic(C=c) for c in CS], data, fold)
    terms = quadratic_terms(standardised(data, fold))
    for c, head in zip(CS, heads, strict=True):
        wanted = reference(terms, data.y.numpy(), fold.train, c)
        assert predict_probabilities(head.module, data.x) == pytest.approx(wanted, abs=1e-4)


def test_landmarks_that_span_all_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, fold = drawn(2, 400), fold_of(400)  # 12 features: 90 quadratic terms, so 100 landmarks span the others
    exact = fitted([Quadratic(C=1.0)], data, fold)[0]
    monkeypatch.setattr(layers, "MOST_LANDMARKS", 100)
    spanned = fitted([Quadratic(C=1.0)], data, fold)[0]
    found, wanted = (predict_probabilities(head.module, data.x) for head in (spanned, exact))
    assert found == pytest.approx(wanted, abs=1e-3)
    monkeypatch.setattr(layers, "MOST_LANDMARKS", 30)
    assert np.isfinite(predict_probabilities(fitted([Quadratic(C=1.0)], data, fold)[0].module, data.x)).all()


@pytest.mark.parametrize("spec", [Logistic(C=0.1), Quadratic(C=1.0)])
def test_a_head_does_not_depend_on_the_heads_that_are_fitted_with_it(spec: Penalised) -> None:
    data, fold = drawn(3), fold_of()
    alone = fitted([spec], data, fold)[0]
    others = [replace(spec, C=c) for c in (1e-4, 100.0)]
    together = train_heads([*others, Mlp(width=4), spec], data, [fold, fold], 3, replace(CONFIG, epochs=1), no_aucs)
    found = [head for head in together if head.spec == spec]
    assert [(head.seed, head.fold) for head in found] == [(0, 0), (0, 1)]
    for head in found:
        for name, value in alone.module.state_dict().items():
            torch.testing.assert_close(head.module.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [Logistic(C=0.1), Quadratic(C=1.0)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_module_is_of_the_shape_that_its_kind_builds(spec: Penalised, n_classes: int) -> None:
    data = drawn(n_classes)
    found = fitted([spec], data, fold_of())[0].module[1].state_dict()  # type: ignore[index]
    built = spec.build(N_FEATURES, n_classes).state_dict()
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in built.items()
    }


@pytest.mark.parametrize("spec", [Logistic(C=1.0), Quadratic(C=1.0)])
@pytest.mark.parametrize("n", [4, 9])
def test_few_images_and_equal_images_are_fitted(spec: Penalised, n: int) -> None:
    data = drawn(2, n)
    data = Labelled(data.x.repeat(2, 1), torch.arange(2 * n) % 2)  # each image with both labels: nothing to be learnt
    rows = np.arange(2 * n)
    head = fitted([spec], data, Fold(rows, rows))[0]
    found = predict_probabilities(head.module, data.x)
    assert np.isfinite(found).all()
    if n % 2:
        assert found == pytest.approx(np.full_like(found, 0.5), abs=1e-4)


def test_a_class_that_the_fold_lacks_gets_hardly_any_probability() -> None:
    data = drawn(2)
    head = fitted([Logistic(C=0.1)], data, fold_of(), n_classes=3)[0]
    assert predict_probabilities(head.module, data.x)[:, 2].max() < 0.01


def test_embeddings_that_are_not_numbers_are_a_clear_error() -> None:
    data = drawn(2)
    broken = data.x.clone()  # type: ignore[union-attr]
    broken[fold_of().train[0], 3] = torch.inf
    with pytest.raises(TrainingError, match=r"logistic,C=1: the solution is not a finite number\. Lower C \(C=\)"):
        fitted([Logistic(C=1.0)], Labelled(broken, data.y), fold_of())


def test_a_solution_that_has_not_converged_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(penalised, "MOST_ITERATIONS", 12)
    with caplog.at_level(logging.WARNING):
        fitted([Logistic(C=1e-5), Logistic(C=1e4)], drawn(2), fold_of())
    assert caplog.messages == ["logistic,C=10000: not converged after 12 iterations"]


# -- many rows ----------------------------------------------------------------------------------------------------------


def test_streamed_rows_are_fitted_as_held_ones() -> None:
    data, fold = drawn(3, 500), fold_of(500)
    x: Tensor = data.x  # type: ignore[assignment]
    streamed = StreamedRows(lambda rows: x.numpy()[rows], np.arange(500), N_FEATURES, 1 << 20, torch.device("cpu"))
    held, found = (fitted([Logistic(C=1.0)], Labelled(rows, data.y), fold)[0] for rows in (HeldRows(x), streamed))
    for one, other in zip(held.module.state_dict().values(), found.module.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


def test_of_many_rows_a_part_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    data, fold = drawn(2, 2_000), fold_of(2_000)
    whole = fitted([Logistic(C=0.1)], data, fold)[0]
    monkeypatch.setattr(penalised, "MOST_ROWS", 600)
    part = fitted([Logistic(C=0.1)], data, fold)[0]
    found, wanted = (predict_probabilities(head.module, data.x) for head in (part, whole))
    assert 0 < np.abs(found - wanted).mean() < 0.05
    torch.testing.assert_close(part.module[0].mean, whole.module[0].mean)  # type: ignore[index]


def test_the_part_has_every_class_in_its_share_and_some_of_a_rare_one() -> None:
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [70_000, 29_990, 10]))
    rows = np.arange(0, 100_000)
    found = stratified(y, rows, 1_000, 0)
    counts = np.bincount(y[found])
    assert (np.diff(found) > 0).all()
    assert counts[2] == 10
    assert counts[:2] == pytest.approx([700, 300], abs=12)
    assert (found == stratified(y, rows, 1_000, 0)).all()
    assert set(found) != set(stratified(y, rows, 1_000, 1))
    assert (stratified(y, rows[:50], 1_000, 0) == rows[:50]).all()


def test_the_part_has_images_with_and_without_each_label() -> None:
    y = np.zeros((20_000, 3), np.int64)
    y[::2, 0], y[[5, 17], 1], y[:, 2], y[[7, 70], 2] = 1, 1, 1, 0
    found = y[stratified(y, np.arange(20_000), 500, 0)]
    assert all(set(column) == {0, 1} for column in found.T)
    assert len(found) < 600


# -- the solver ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 20, 50])  # a fourth of 80, and more
def test_few_embeddings_have_the_principal_components_of_their_covariance(n: int) -> None:
    z = torch.randn(n, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis, centred = layers.linear_basis(z), z - z.mean(0)
    assert basis.design.shape == (n, n - 1)
    torch.testing.assert_close(basis.design @ basis.design.T, centred @ centred.T)
    values = torch.linalg.eigvalsh(centred.T @ centred)[-(n - 1) :]
    torch.testing.assert_close(basis.design.square().sum(0).sort().values, values)
    weights = torch.randn(n - 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = basis.module(weights, torch.zeros(2, dtype=torch.float64))(z)
    torch.testing.assert_close(logits, basis.design @ weights)


def test_the_solution_is_where_the_gradient_is_zero() -> None:
    from hoarfrost.training.objective import objective_for

    data = drawn(3)
    z = transformed(data.looks.rows.take(torch.arange(N)), "sqrt").double()
    basis = layers.linear_basis(unit_length(z - z.mean(0)))
    gram = basis.design.T @ basis.design
    torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-9)
    torch.testing.assert_close(basis.design.mean(0), torch.zeros(len(gram), dtype=torch.float64), rtol=0, atol=1e-12)
    problem = problem_of(objective_for(data.y, 3), data.y, balanced=False)
    weights, biases, converged = solve(basis.design, problem, CS)
    assert converged.all()
    for w, b, c in zip(weights, biases, CS, strict=True):
        w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(basis.design @ w + b, data.y, reduction="sum")
        gradients = torch.autograd.grad(c * loss + w.square().sum() / 2, [w, b])
        assert max(float(one.abs().max()) for one in gradients) < 2e-3 * max(c, 1)
