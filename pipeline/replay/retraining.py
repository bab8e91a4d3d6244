"""What a run's settings and cache determine: references and audits fitted again, or the whole training."""

from dataclasses import fields, replace

from hoarfrost.experiment.acquisition import acquisition_twin
from hoarfrost.experiment.crossval import NESTED
from hoarfrost.experiment.development import development_of
from hoarfrost.experiment.experiment import ExperimentConfig, checked, read_task_of, trained_run
from hoarfrost.experiment.results import compare_with, score_references
from hoarfrost.experiment.review import audit, find_suspects
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.devices import choose_device, one_thread
from hoarfrost.features.errors import HoarfrostError, RunError
from hoarfrost.heads.config import ScoringConfig, TrainingConfig
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import Run, TrainOptions

FITTED_AGAIN = ("references", "leakage", "shortcuts", "acquisition", "suspects")


def config_of(run: Run, asked: TrainOptions, *, device: str) -> ExperimentConfig:
    """Return the settings by which a run was trained, to compute it again on a device."""
    own = replace(run.config, device=device)
    options = {name: value for name, value in vars(asked).items() if name != "heads"}
    options["splits_from"] = None if asked.splits_from is None else run.directory  # it has the same splits
    return ExperimentConfig(
        training=TrainingConfig(**{field.name: getattr(own, field.name) for field in fields(TrainingConfig)}),
        dataset=own.dataset.name, positive=own.dataset.positive or (), memory_limit=own.streamed_bytes, select=own.select,
        lock_test=own.plan is not None, allow_leakage=True, allow_conflicts=True, **options,
        **{field.name: getattr(own, field.name) for field in fields(ScoringConfig)},
    )  # fmt: skip


def trained_again(run: Run, asked: TrainOptions, cache: EmbeddingCache) -> Run:
    """Train all heads of a run again, with its settings and seeds, and everything that depends on them.

    Raises
    ------
    HoarfrostError
        If this machine does not have the device that the run was trained on; or as `trained_run`.
    """
    try:
        device = choose_device(run.config.device)
    except HoarfrostError as error:
        raise RunError(
            f"--retrain: {run.directory} was trained on {run.config.device}, which does not work on this machine. Retrain it "
            "on a machine where it does, or omit --retrain."
        ) from error
    config = config_of(run, asked, device=device)
    found, _ = trained_run(
        cache, run.directory, parse_heads(list(asked.heads)), config, fix_plan=lambda _: run.config.plan
    )
    return found


def fitted_again(run: Run, asked: TrainOptions, cache: EmbeddingCache) -> Run:
    """Return a run with its references, comparisons and audits computed again, which need none of its heads trained."""
    config = config_of(run, asked, device="cpu")  # what is fitted here is fitted in float64
    task = read_task_of(cache, config)
    development, probabilities = development_of(task, config.training.seed), run.predictions.probabilities
    with one_thread(only_if=task.is_small):
        references, of_references = score_references(task, development, run.config.embeddings.views)
        return replace(
            run,
            references=references,
            comparisons=compare_with(task, probabilities, of_references, run.selected),
            leakage=checked(task, cache.path, run.directory, config),
            shortcuts=audit(task, config.training.seed),
            acquisition=acquisition_twin(task, development),
            suspects=find_suspects(
                task, NESTED, run.out_of_fold, probabilities[run.selected], config.training.seed,
                in_test=asked.suspects_in_test,
            ),
        )  # fmt: skip
