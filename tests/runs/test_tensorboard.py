"""Logs for TensorBoard: the training curves of every head and seed, as history.csv has them."""

from pathlib import Path

import pytest

import hoarfrost.runs.tensorboard
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import RunError
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import TrainingConfig
from tests.support.labelled import mixed, write_labelled_cache

HEADS = ["linear", "mlp:8,lr=0.01"]


def train(folder: Path) -> "dict[tuple[str, int], list[float]]":
    """Train, and give each head's and seed's validation losses by history.csv."""
    cache = write_labelled_cache(folder / "c.h5", mixed({"benign": 40, "malignant": 40}))
    config = TrainingConfig(epochs=3, seeds=2)
    run = run_experiment(
        cache, folder / "run", parse_heads(HEADS), ExperimentConfig(training=config, with_tensorboard=True)
    )
    losses: dict[tuple[str, int], list[float]] = {}
    for epoch in run.history:
        losses.setdefault((epoch.head, epoch.seed), []).append(epoch.val_loss)
    return losses


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own dependencies
def test_every_heads_curves_are_in_its_own_log(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    losses = train(tmp_path)
    folders = {("linear", seed): f"linear/seed{seed}" for seed in (0, 1)}
    folders |= {("mlp:8,lr=0.01", seed): f"mlp-8-lr=0.01/seed{seed}" for seed in (0, 1)}
    assert losses.keys() == folders.keys()
    for key, folder in folders.items():
        log = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard" / folder)).Reload()
        assert [event.value for event in log.Scalars("loss/validation")] == pytest.approx(losses[key])
        assert set(log.Tags()["scalars"]) == {"loss/train", "loss/validation", "roc_auc/validation", "learning_rate"}
    train(tmp_path)  # a run with logs is replaced as any other


def test_without_tensorboard_nothing_is_trained_and_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hoarfrost.runs.tensorboard.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        RunError, match="--tensorboard needs the package tensorboard. Install it: pip install tensorboard"
    ):
        train(tmp_path)
    assert not (tmp_path / "run").exists()
