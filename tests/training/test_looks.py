"""Several looks at each image: chosen as an array would choose them, one a step while training, all of them at the end."""

from dataclasses import replace
from math import log

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.heads.specs import parse_head, parse_heads
from hoarfrost.training import (
    Fold,
    HeldRows,
    Labelled,
    Looks,
    Rows,
    StreamedRows,
    TrainedHead,
    TrainingConfig,
    committee_of,
    train_heads,
)
from hoarfrost.training.batches import Batches, Group
from hoarfrost.training.looks import look_rows
from hoarfrost.training.objective import objective_for
from hoarfrost.training.rows import CHUNK_ROWS, gathered

N, V, D = 40, 3, 6
VIEWS = ("224", "224:flip", "448")
LAYERS = {3: slice(0, 2), 4: slice(2, 6)}
X = np.random.default_rng(0).normal(size=(N, V, D)).astype(np.float32)
Y = torch.arange(N) % 2
FOLD = Fold(np.arange(0, 28), np.arange(28, N))
QUICK = TrainingConfig(epochs=4, batch_size=8, seeds=1)

Floats = npt.NDArray[np.float32]


def rows_of(x: Floats, *, streamed: bool) -> Rows:
    """Return all looks as rows, in memory; or read from a "file" in which the views follow one another."""
    n, v, d = x.shape
    if not streamed:
        return HeldRows(torch.from_numpy(x.reshape(-1, d)))
    file = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(-1, d)
    places = (np.arange(v) * n + np.arange(n)[:, None]).ravel()
    return StreamedRows(lambda rows: file[rows], places, d, 1 << 24, torch.device("cpu"))


def looks(x: Floats = X, *, streamed: bool = False, views: tuple[str, ...] = VIEWS) -> Looks:
    return Looks(rows_of(x, streamed=streamed), views, LAYERS)


# -- as an array would -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["held", "streamed"])
@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        ("linear", X),
        ("linear,views=448+224", X[:, [2, 0]]),
        ("linear,layers=4", X[..., 2:]),
        ("linear,views=224:flip,layers=3", X[:, [1], :2]),
        ("linear,layers=4+3", X[..., [2, 3, 4, 5, 0, 1]]),
        ("logistic", X.mean(1, keepdims=True)),
        ("quadratic,views=448+224,layers=4", X[:, [2, 0], 2:].mean(1, keepdims=True)),
        ("logistic,views=448", X[:, [2]]),
    ],
)
def test_a_head_learns_from_its_own_views_and_columns(head: str, wanted: Floats, streamed: bool) -> None:
    found, n_looks = looks(streamed=streamed).of(parse_head(head))
    assert (n_looks, len(found), found.n_features) == (wanted.shape[1], N * wanted.shape[1], wanted.shape[2])
    flat = wanted.reshape(-1, wanted.shape[2])
    some = np.array([[5, 0, 5], [N - 1, 17, 2]])
    np.testing.assert_allclose(found.take(torch.from_numpy(some)).numpy(), flat[some], rtol=0, atol=1e-6)
    backwards = np.arange(len(flat))[::-1].copy()
    np.testing.assert_allclose(gathered(found, backwards), flat[::-1], rtol=0, atol=1e-6)
    found.hold(np.arange(len(flat)))
    np.testing.assert_allclose(found.take(torch.from_numpy(backwards)).numpy(), flat[::-1], rtol=0, atol=1e-6)
    found.release()


@pytest.mark.parametrize("streamed", [False, True], ids=["held", "streamed"])
def test_means_first_views_and_blocks_are_the_arrays(streamed: bool) -> None:
    some = looks(streamed=streamed)
    np.testing.assert_array_equal(gathered(some.first((4,)), np.arange(N)), X[:, 0, 2:])
    np.testing.assert_allclose(gathered(some.mean(("224", "448")), np.arange(N)), X[:, [0, 2]].mean(1), atol=1e-6)
    rows, found = np.array([30, 2, 9]), np.empty((3, V, D), np.float32)
    for places, part in some.blocks(rows):
        found[places] = part.numpy()
    np.testing.assert_array_equal(found, X[rows])
    np.testing.assert_array_equal(look_rows(rows, 2), [60, 61, 4, 5, 18, 19])


@pytest.mark.parametrize("order", ["view after view", "image after image"])
@pytest.mark.parametrize("places", [(0, 1, 2, 3), (1, 3)])
def test_streamed_looks_are_drawn_from_as_much_of_the_file_as_fits_into_memory(
    order: str, places: tuple[int, ...]
) -> None:
    n, v = 8 * CHUNK_ROWS, 4
    images = np.arange(n)
    file_rows = images[:, None] + n * np.arange(v) if order == "view after view" else images[:, None] * v + np.arange(v)
    n_slots, n_read = 16, []

    def read(rows: npt.NDArray[np.int64]) -> Floats:
        n_read.append(len(rows))
        return np.zeros((len(rows), 1), np.float32)

    x = StreamedRows(read, file_rows.ravel(), 1, n_slots * CHUNK_ROWS * 4 * 8, torch.device("cpu"), n_looks=v)
    found, k = Looks(x, ("a", "b", "c", "d")).chosen(places, (), average=False), len(places)
    y, fold, config = torch.arange(n) % 2, Fold(images, images[:4]), replace(QUICK, batch_size=256)
    batches = Batches([Group(0, 0), Group(1, 0)], [fold], found, y, objective_for(y, 2), config, k)
    for batch in batches.epoch():
        found.take(batch.rows)
    assert sum(n_read) == n * (k if order == "view after view" else v)  # each chunk once


# -- one look a step ---------------------------------------------------------------------------------------------------


def drawn(seed: int, others: int = 0) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each epoch that a group is trained on, beside other groups of the run."""
    groups = [Group(seed, 0), *(Group(100 + other, 0) for other in range(others))]
    batches = Batches(groups, [FOLD], looks().rows, Y, objective_for(Y, 2), QUICK, V)
    return [np.concatenate([b.rows[0, : b.sizes[0]].numpy() for b in batches.epoch()]) for _ in range(60)]


def test_an_epoch_sees_one_look_at_each_image_drawn_by_the_seed() -> None:
    epochs = drawn(3)
    for rows in epochs:
        assert sorted(rows // V) == list(range(28))
    counts = np.bincount(np.concatenate(epochs) % V, minlength=V)  # of 1,680; the deviation by chance is 19
    assert (np.abs(counts - 560) < 100).all()
    assert all((a == b).all() for a, b in zip(epochs, drawn(3, others=2), strict=True))
    assert not any((a % V == b % V).all() for a, b in zip(epochs, drawn(4), strict=True))
    of_first = [rows[rows // V == 0] % V for rows in epochs]
    assert {int(look[0]) for look in of_first} == {0, 1, 2}


def test_the_weights_of_a_batch_belong_to_the_images_of_its_looks() -> None:
    y = torch.tensor([0] * 20 + [1] * 20)
    batches = Batches([Group(0, 0), Group(1, 0)], [FOLD], looks().rows, y, objective_for(y, 2), QUICK, V)
    for batch in batches.epoch():
        for rows, targets, size in zip(batch.rows, batch.targets, batch.sizes, strict=True):
            assert (targets[:size].argmax(1) == y[rows[:size] // V]).all()
            assert targets.sum() == pytest.approx(1, abs=1e-6)


# -- what is trained ---------------------------------------------------------------------------------------------------


def trained(
    data: Looks, *heads: str, config: TrainingConfig = QUICK, folds: tuple[Fold, ...] = (FOLD,)
) -> list[TrainedHead]:
    return train_heads(parse_heads(list(heads)), Labelled(data, Y), folds, 2, config, macro_roc_aucs)


def probabilities(heads: list[TrainedHead], x: Floats, views: tuple[str, ...]) -> npt.NDArray[np.float64]:
    weights = [1 / len(heads)] * len(heads)
    committee = committee_of(heads, weights, views, is_multilabel=False).exact()
    return committee.probabilities(torch.from_numpy(x))


def bits(head: TrainedHead) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in head.module.state_dict().values()]


@pytest.mark.parametrize("head", ["logistic,C=0.1", "quadratic,C=1", "linear", "mlp:4,dropout=0,members=1"])
@pytest.mark.parametrize("streamed", [False, True], ids=["held", "streamed"])
def test_one_view_of_several_is_what_it_is_alone(head: str, streamed: bool) -> None:
    named, (alone,) = f"{head},views=448", trained(looks(X[:, [2]], views=("448",)), f"{head},views=448")
    (among,) = trained(looks(streamed=streamed), named)
    if not streamed:
        assert bits(alone) == bits(among)
    found, wanted = (probabilities([alone], X[:, 2], ("448",)), probabilities([among], X, VIEWS))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 if not streamed else 1e-6)


@pytest.mark.parametrize("head", ["logistic,C=0.1", "quadratic,C=1"])
def test_penalised_heads_learn_from_equal_views_what_they_learn_from_one(head: str) -> None:
    equal = np.repeat(X[:, :1], V, axis=1)
    (one,), (several,) = trained(looks(equal[:, :1], views=("224",)), head), trained(looks(equal), head)
    np.testing.assert_allclose(
        probabilities([one], X[:, 0], ("224",)), probabilities([several], equal, VIEWS), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("head", ["linear", "mlp:4,dropout=0,members=1"])
def test_with_equal_views_it_does_not_matter_which_is_drawn(head: str) -> None:
    equal = np.repeat(X[:, :1], V, axis=1)
    batches_of_all = replace(QUICK, batch_size=28)  # the order within a batch then changes rounding alone
    (one,) = trained(looks(equal[:, :1], views=("224",)), head, config=batches_of_all)
    (several,) = trained(looks(equal), head, config=batches_of_all)
    np.testing.assert_allclose(
        probabilities([one], X[:, 0], ("224",)), probabilities([several], equal, VIEWS), rtol=0, atol=1e-5
    )
    for a, b in zip(one.history, several.history, strict=True):
        assert (a.train_loss, a.val_loss) == pytest.approx((b.train_loss, b.val_loss), abs=1e-5)


@pytest.mark.parametrize("head", ["logistic,C=0.1", "quadratic,C=1,transform=unit"])
def test_penalised_heads_learn_from_the_mean_embedding(head: str) -> None:
    mean = np.ascontiguousarray(X.mean(1, keepdims=True))
    (of_mean,), (of_views,) = trained(looks(mean, views=("224",)), head), trained(looks(), head)
    np.testing.assert_allclose(
        probabilities([of_mean], mean[:, 0], ("224",)), probabilities([of_views], X, VIEWS), rtol=0, atol=1e-5
    )


def test_another_head_of_the_run_changes_no_bit() -> None:
    heads = ("mlp:4", "mlp:4,views=224+224:flip", "linear,layers=4")
    together = {one.spec: one for one in trained(looks(), *heads)}
    for head in heads:
        (alone,) = trained(looks(), head)
        assert bits(alone) == bits(together[alone.spec])
        assert alone.history == together[alone.spec].history


def test_validation_is_by_the_mean_over_views() -> None:
    (head,) = trained(looks(), "mlp:4,dropout=0,members=1", config=replace(QUICK, epochs=1, label_smoothing=0.0))
    val = FOLD.val
    of_views = np.stack([probabilities([head], X[val][:, v], ("224",)) for v in range(V)])
    p = of_views.mean(0)[np.arange(len(val)), Y.numpy()[val]]
    assert head.history[-1].val_loss == pytest.approx(-np.log(p).mean(), abs=1e-5)
    of_each = -np.log(of_views[:, np.arange(len(val)), Y.numpy()[val]]).mean()
    assert head.history[-1].val_loss < of_each < log(2) * 2  # not the mean of the views' losses


def test_early_stopping_keeps_the_epoch_that_is_best_by_the_mean_over_views() -> None:
    config = replace(QUICK, epochs=40, patience=3, label_smoothing=0.0)
    (head,) = trained(looks(), "mlp:8,dropout=0,members=1,lr=0.05", config=config)
    losses = [epoch.val_loss for epoch in head.history]
    assert head.best_epoch == 1 + int(np.argmin(losses))
    assert len(losses) < 40
    found = probabilities([head], X[FOLD.val], VIEWS)[np.arange(len(FOLD.val)), Y.numpy()[FOLD.val]]
    assert -np.log(found).mean() == pytest.approx(min(losses), abs=1e-5)


def test_folds_of_unequal_size_are_validated_on_their_own_images_alone() -> None:
    folds = (FOLD, Fold(np.arange(0, 33), np.arange(33, N)))
    together = trained(looks(), "linear", folds=folds)
    for fold, head in zip(folds, together, strict=True):
        p = probabilities([head], X[fold.val], VIEWS)[np.arange(len(fold.val)), Y.numpy()[fold.val]]
        assert head.history[-1].val_loss == pytest.approx(-np.log(p).mean(), abs=1e-5)
