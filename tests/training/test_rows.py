"""Embeddings by row: streamed rows equal those in memory, within the limit, in an order that each head has by itself."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import Fold, HeldRows, Labelled, StreamedRows, TrainingConfig, train_heads
from hoarfrost.training import rows as rows_module
from hoarfrost.training.rows import CHUNK_ROWS, TransformedRows, fitted_standardise, moments, transformed_rows

N_FEATURES = 4
N_FILE_ROWS = 10 * CHUNK_ROWS + 17
FILE = np.random.default_rng(0).standard_normal((N_FILE_ROWS, N_FEATURES), np.float32)
TWO_CHUNKS_A_WINDOW = 8 * 4 * CHUNK_ROWS * N_FEATURES * 4  # bytes: an eighth is four chunks


class Reader:
    """Reads rows of FILE, and counts them."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.most_at_once = 0

    def __call__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        assert (np.diff(rows) >= 0).all()
        self.n_rows += len(rows)
        self.most_at_once = max(self.most_at_once, len(rows))
        return FILE[rows]


def streamed(file_rows: npt.NDArray[np.int64], limit_bytes: int = TWO_CHUNKS_A_WINDOW) -> tuple[StreamedRows, Reader]:
    reader = Reader()
    return StreamedRows(reader, file_rows, N_FEATURES, limit_bytes, torch.device("cpu")), reader


def some_file_rows(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, N_FILE_ROWS, n)


@given(
    n=st.integers(1, 4 * CHUNK_ROWS),
    limit_chunks=st.integers(1, 12),
    takes=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 400)), min_size=1, max_size=5),
    hold=st.booleans(),
)
def test_taken_rows_are_the_files_rows(n: int, limit_chunks: int, takes: list[tuple[int, int]], hold: bool) -> None:
    file_rows = some_file_rows(n)
    x, _ = streamed(file_rows, limit_chunks * 8 * CHUNK_ROWS * N_FEATURES * 4)
    if hold:
        x.hold(np.unique(some_file_rows(50) % n))
    for seed, size in takes:
        rows = np.random.default_rng(seed).integers(0, n, (2, size))
        assert (x.take(torch.from_numpy(rows)).numpy() == FILE[file_rows[rows]]).all()


@given(n=st.integers(1, 3 * CHUNK_ROWS), epoch=st.integers(1, 3), seed=st.integers(0, 3))
def test_an_epochs_order_has_every_row_once(n: int, epoch: int, seed: int) -> None:
    x, _ = streamed(some_file_rows(n))
    rows = np.flatnonzero(np.arange(n) % 3 > 0)
    order = x.shuffled(rows, torch.Generator().manual_seed(seed), epoch)
    assert sorted(order.tolist()) == list(range(len(rows)))


def test_an_epoch_reads_the_file_once_whatever_the_number_of_heads() -> None:
    n = N_FILE_ROWS
    x, reader = streamed(np.arange(n))
    rows = np.arange(n)
    orders = [x.shuffled(rows, torch.Generator().manual_seed(seed), 1) for seed in range(3)]
    assert not (orders[0] == orders[1]).all()
    for first in range(0, n, 64):
        x.take(torch.from_numpy(np.stack([rows[order[first : first + 64]] for order in orders])))
    assert reader.n_rows == n


def test_another_epoch_has_other_windows_and_batches_are_mixed_from_all_over_a_window() -> None:
    rows = np.arange(N_FILE_ROWS)
    x, _ = streamed(rows)
    first, second = (x.shuffled(rows, torch.Generator().manual_seed(0), epoch) for epoch in (1, 2))
    windows = [{int(row) // CHUNK_ROWS for row in order[: 2 * CHUNK_ROWS]} for order in (first, second)]
    assert windows[0] != windows[1]
    assert len({int(row) // CHUNK_ROWS for row in first[:64]}) == 2


def test_a_pass_and_held_rows_stay_within_the_limit() -> None:
    x, reader = streamed(np.arange(N_FILE_ROWS), 100_000)
    x.hold(np.arange(N_FILE_ROWS))  # more than half of the limit: not held
    reader.n_rows = 0
    x.take(torch.arange(10))
    assert reader.n_rows == CHUNK_ROWS
    x.hold(np.arange(50, 90))
    reader.n_rows = 0
    assert (x.take(torch.arange(50, 90)).numpy() == FILE[50:90]).all()
    assert reader.n_rows == 0
    x.release()
    x.take(torch.arange(50, 90))
    assert reader.n_rows == CHUNK_ROWS


@pytest.mark.parametrize("limit_chunks", [1, 100])
def test_moments_are_those_of_all_rows_at_once(limit_chunks: int) -> None:
    file_rows = np.random.default_rng(1).permutation(N_FILE_ROWS)
    rows = np.flatnonzero(np.arange(N_FILE_ROWS) % 4 > 0)
    expected = FILE[file_rows[rows]].astype(np.float64) * 1e3 + 1e5
    scaled = HeldRows(torch.from_numpy(FILE[file_rows].astype(np.float64) * 1e3 + 1e5))
    for x, shift in ((scaled, 0), (streamed(file_rows, limit_chunks * 2 << 17)[0], 1)):
        mean, std = moments(x, rows)
        wanted = expected if not shift else FILE[file_rows[rows]].astype(np.float64)
        assert mean.numpy() == pytest.approx(wanted.mean(0), rel=1e-12, abs=1e-12)
        assert std.numpy() == pytest.approx(wanted.std(0), rel=1e-10)


@pytest.mark.parametrize("transform", ["none", "sqrt", "unit"])
def test_rows_are_transformed_once_in_memory_or_each_time_they_are_taken(
    monkeypatch: pytest.MonkeyPatch, transform: str
) -> None:
    wanted = {
        "none": FILE,
        "sqrt": np.sign(FILE) * np.sqrt(np.abs(FILE)),
        "unit": FILE / np.linalg.norm(FILE, axis=1, keepdims=True),
    }[transform]
    held, rows = HeldRows(torch.from_numpy(FILE)), np.arange(5, N_FILE_ROWS, 3)
    once = transformed_rows(held, transform)
    assert isinstance(once, HeldRows)
    monkeypatch.setattr(rows_module, "TRANSFORMED_NUMBERS", 10)
    each_time = transformed_rows(held, transform), transformed_rows(streamed(np.arange(N_FILE_ROWS))[0], transform)
    assert all(isinstance(x, TransformedRows) == (transform != "none") for x in each_time)
    for x in (once, *each_time):
        assert x.take(torch.from_numpy(rows)).numpy() == pytest.approx(wanted[rows], abs=1e-6)
        standardise = fitted_standardise(x, rows, transform)
        expected = (wanted - wanted[rows].mean(0)) / wanted[rows].std(0)
        assert standardise(held.x).numpy() == pytest.approx(expected, abs=1e-4)


def test_streamed_heads_learn_as_held_ones_and_depend_on_nobody_else() -> None:
    n = N_FILE_ROWS
    y = torch.from_numpy((FILE[:, 0] + FILE[:, 1] > 0).astype(np.int64))
    fold = Fold(np.arange(0, n, 2), np.arange(1, n, 2))
    config = TrainingConfig(epochs=3, batch_size=256, seeds=2)
    specs = parse_heads(["linear,lr=1e-2", "mlp:8,lr=1e-2"])

    def aucs(x: StreamedRows | HeldRows, some: slice = slice(None), **changes: int) -> list[list[float]]:
        found = train_heads(
            specs[some], Labelled(x, y), [fold], 2, TrainingConfig(**{**vars(config), **changes}), macro_roc_aucs
        )
        return [[epoch.val_loss for epoch in head.history] for head in found]

    together = aucs(streamed(np.arange(n))[0])
    assert together == aucs(streamed(np.arange(n))[0])
    assert together[:2] == aucs(streamed(np.arange(n))[0], slice(0, 1))
    assert [together[1]] == aucs(streamed(np.arange(n))[0], slice(0, 1), seed=1, seeds=1)
    held = aucs(HeldRows(torch.from_numpy(FILE)))
    assert np.abs(np.array(together) - np.array(held))[:, -1].max() < 0.02
