"""One experiment: from a cached dataset to a run folder. Opens no image, and loads no backbone."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path

import torch

from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.evaluation.operating import YOUDENS_RULE, Rule
from hoarfrost.experiment.acquisition import acquisition_twin
from hoarfrost.experiment.compared_views import choose_views
from hoarfrost.experiment.covariates import added_value, read_covariates
from hoarfrost.experiment.crossval import NESTED
from hoarfrost.experiment.curve import learning_curve
from hoarfrost.experiment.development import Development, development_of
from hoarfrost.experiment.earlier import warn_of_moved
from hoarfrost.experiment.facts import dataset_facts, embedding_facts, machine_used, predictions_of, versions_used
from hoarfrost.experiment.gate import check_conflicts, check_leakage, state_mixed_patients
from hoarfrost.experiment.locking import count_training, enter_run, lock_test, with_earlier_looks
from hoarfrost.experiment.resampling import parts_of, resample, with_resampled
from hoarfrost.experiment.results import Scored, compare, score_variants
from hoarfrost.experiment.review import assess, audit, find_suspects
from hoarfrost.experiment.saved import epochs_of, head_files
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.experiment.variants import MEAN, Variant, fit_variants
from hoarfrost.experiment.views import AUTO, ViewSet, view_sets
from hoarfrost.features.cache import EmbeddingCache, open_caches
from hoarfrost.features.devices import choose_device, one_thread
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.heads.config import ScoringConfig, TrainingConfig
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import (
    AnalysisPlan,
    ComparedViews,
    LearningPoint,
    Run,
    RunConfig,
    TrainOptions,
    check_run_directory,
    hidden,
    leakage_warnings,
    read_run,
    require_tensorboard,
    write_run,
)
from hoarfrost.training import StreamedRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(ScoringConfig):
    """The settings of an experiment, apart from its cache and its heads.

    Attributes
    ----------
    training : TrainingConfig
    dataset : str or None
        Which of the cache's datasets; not needed where there is one.
    positive : sequence of str
        Labels that count as class 1; makes the task binary.
    label_columns : sequence of str or None
        Columns of 0 and 1 that are labels, of which an image may have several; if empty, all such columns.
    memory_limit : int or None
        Bytes that embeddings may take; by default half of the memory that this process may use.
    cross_fit : bool or None
        Validate by cross-fitting: every image outside of the test split is predicted by heads that did not learn from it.
        None: where the dataset has no validation split, and heads are not stopped early.
    select : str
        "mean": the mean of all kinds of head, weighted by out-of-fold loss. "best": the head with the lowest such loss.
    n_folds : int or None
        Cross-validate the whole procedure, including the selection, in this many folds.
    n_repeats : int | None
        Repeat the whole procedure on this many random splits, to see how much the results depend on the draw.
    suspects_in_test : bool
        List images of the test split among the labels to look at again.
    leave_out : str | None
        A column, such as the site: repeat the whole procedure without each of its values, and score it there.
    with_learning_curve : bool
        Train the selected head on growing shares of the training patients too.
    with_tensorboard : bool
        Write the training curves for TensorBoard too.
    near_duplicates : "group", "warn" or "ignore"
        Whether near-identical images are kept together in splits and folds, where patients are unknown.
    views : str
        Names of views or of sets of views that all heads look at; "auto" chooses among those of the cache by out-of-fold
        loss.
    lock_test : bool
        Fix the analysis plan before training, keep the test split out of everything else, and count looks at its scores.
    allow_leakage : bool
        Continue even if two splits share patients or identical images.
    allow_conflicts : bool
        Continue even if many images have two labels.
    splits_from : Path or None
        An earlier run, whose splits are kept.
    with_digests : bool
        Head files hold short digests of the images that they learned from, so that `evaluate --head` finds these again.
    overwrite : bool
        Replace an earlier run even if it has a report.
    """

    training: TrainingConfig = field(default_factory=TrainingConfig)
    dataset: str | None = None
    positive: Sequence[str] = ()
    label_columns: Sequence[str] | None = None
    memory_limit: int | None = None
    cross_fit: bool | None = None
    select: str = MEAN
    n_folds: int | None = None
    n_repeats: int | None = None
    leave_out: str | None = None
    suspects_in_test: bool = False
    with_learning_curve: bool = False
    with_tensorboard: bool = False
    near_duplicates: str = "group"
    views: str = AUTO
    lock_test: bool = False
    allow_leakage: bool = False
    allow_conflicts: bool = False
    splits_from: Path | None = None
    with_digests: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class TrainingProgress:
    """How far an experiment is: its stage and, while it trains, the architecture and the epoch that is complete.

    Stages are "heads", "folds", "repeats", "sites", "curve" and "scores".
    """

    stage: str
    shape: str = ""
    epoch: int = 0


def run_experiment(
    cache: Path | Sequence[Path],
    directory: Path,
    heads: Sequence[HeadSpec],
    config: ExperimentConfig,
    *,
    command: Sequence[str] = (),
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> Run:
    """Train heads on a cached dataset, select one by validation, score all, and write the run folder.

    Parameters
    ----------
    cache : Path or sequence of Path
        The cache's HDF5 file; of several caches of the same images, the embeddings are side by side.
    directory : Path
        The run folder. An earlier run there is replaced once the new one is complete.
    heads : sequence of HeadSpec
    config : ExperimentConfig
    command : sequence of str
        The command that the user typed, for the record.
    on_progress : callable
        Called after each epoch, and before scoring.

    Returns
    -------
    Run

    Raises
    ------
    HoarfrostError
        One of its children: cache, labels, splits, heads, or the run folder.
    """
    started = time.monotonic()
    _check_place(directory, config)
    training = replace(config.training, device=choose_device(config.training.device))
    config = replace(config, training=training)

    def fix_plan(task: Task) -> AnalysisPlan | None:
        return _locked(task, opened, heads, config, training, directory)

    with _opened(cache, config) as opened:  # open to the end: embeddings may be streamed from it
        run, files = trained_run(opened, directory, heads, config, fix_plan=fix_plan, on_progress=on_progress)
    record = replace(run.config, command=shlex.join(command), seconds=time.monotonic() - started)
    run = with_earlier_looks(replace(run, config=record), opened, config.splits_from)
    write_run(run, files, with_tensorboard=config.with_tensorboard, overwrite=config.overwrite)
    enter_run(run, opened)
    return hidden(run)


def trained_run(
    cache: EmbeddingCache,
    directory: Path,
    heads: Sequence[HeadSpec],
    config: ExperimentConfig,
    *,
    fix_plan: Callable[[Task], AnalysisPlan | None],
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> tuple[Run, dict[str, bytes]]:
    """Return a run and its head files, as `run_experiment` writes them; nothing is written here.

    `fix_plan` takes the task before any head is trained, and returns the plan of a locked test split, or None.
    """
    training = config.training

    def in_stage(stage: str) -> Callable[[str, int], None]:
        return lambda shape, epoch: on_progress(TrainingProgress(stage, shape, epoch))

    task = read_task_of(cache, config)
    leakage = checked(task, cache.path, directory, config)
    columns = read_covariates(task, config.covariates, has_folds=bool(config.n_folds))
    development = development_of(task, training.seed)
    parts = parts_of(task, training.seed, config.n_folds, config.n_repeats, config.leave_out)
    plan = fix_plan(task)
    sets = view_sets(task.views, task.encoder, are_chosen=config.views != AUTO)
    (fitted,) = fit_variants(heads, [development], task, training, in_stage("heads"), sets=sets)
    resampled = resample(heads, task, parts, training, config.select, in_stage, sets)
    on_progress(TrainingProgress("scores"))
    views, of_run, scored = _selected(fitted, task, development, config)
    run = Run(
        directory=directory,
        config=replace(_run_config(task, development, cache, config, heads, fitted[views], views), plan=plan),
        selected=scored.selected,
        heads=scored.heads,
        references=scored.references,
        cross_validation=None,
        learning_curve=_curve(
            scored, task, development, training, in_stage("curve"), wanted=config.with_learning_curve
        ),
        history=tuple(epochs_of(fitted[views])),
        predictions=predictions_of(task, scored.probabilities),
        leakage=leakage,
        views=of_run,
    )
    run = with_resampled(run, task, resampled, scored)
    with one_thread(only_if=task.is_small):
        added = added_value(task, columns, scored, parts.folds, resampled.folded, config.prevalence)
        run = replace(run, acquisition=acquisition_twin(task, development), covariates=added)
        run = _reviewed(run, task, scored, suspects_in_test=config.suspects_in_test)
        return run, head_files(task, development, scored, cache, views.views, with_digests=config.with_digests)


def _selected(
    fitted: Mapping[ViewSet, Mapping[str, Variant]], task: Task, development: Development, config: ExperimentConfig
) -> tuple[ViewSet, ComparedViews | None, Scored]:
    """Choose the views, then score the heads that look at them, and select one."""
    with one_thread(only_if=task.is_small):
        views, compared = choose_views(fitted, task, development, config.select)
        return views, compared, score_variants(fitted[views], task, development, config.select, views.views)


def _curve(
    scored: Scored, task: Task, development: Development, training: TrainingConfig, on_epoch: Callable[[str, int], None],
    *, wanted: bool,
) -> tuple[LearningPoint, ...]:  # fmt: skip
    """Return the learning curve of the selected head, if it is wanted."""
    return learning_curve(scored.variants[scored.selected], task, development, training, on_epoch) if wanted else ()


def _check_place(directory: Path, config: ExperimentConfig) -> None:
    """Refuse what would fail only after the training, and state which earlier run will be replaced."""
    earlier = check_run_directory(directory, overwrite=config.overwrite)
    if earlier is not None and earlier.plan is not None and not (config.lock_test or config.overwrite):
        raise RunError(
            f"{directory} contains a run with a locked test split. Nothing was written there. Name another folder with "
            "--run, keep the lock with --lock-test, or replace the run with --overwrite."
        )
    if earlier is not None:
        logger.info("%s: replaces the run of %s when training is complete", directory, earlier.created)
    if config.with_tensorboard:
        require_tensorboard()


def _opened(cache: Path | Sequence[Path], config: ExperimentConfig) -> EmbeddingCache:
    caches = [cache] if isinstance(cache, Path) else cache
    if len(caches) > 1 and config.views != AUTO:
        raise TrainingError(
            f"--views {config.views}: of several caches, the first view of each is used. Omit --views, or train on one cache."
        )
    return open_caches(caches, config.dataset)


def read_task_of(cache: EmbeddingCache, config: ExperimentConfig) -> Task:
    """Read the task of an experiment, see `read_task`; early stopping sets a validation split aside."""
    training = config.training
    try:
        rule = Rule.parse(config.operating_point)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    stops_early = training.patience is not None
    if stops_early and config.cross_fit:
        raise TrainingError(
            "--patience stops each head by its validation images. With cross-fitting, these images would choose the head "
            "that then predicts them. Omit --patience or --cross-fit."
        )
    task = read_task(
        cache, config.dataset, config.positive, training.seed, label_columns=config.label_columns,
        memory_limit=config.memory_limit, device=training.device, per_patient=config.per_patient,
        cross_fit=False if stops_early else config.cross_fit, near_duplicates=config.near_duplicates,
        earlier=None if config.splits_from is None else read_run(config.splits_from).predictions, views=config.views,
    )  # fmt: skip
    if rule != YOUDENS_RULE and not task.is_multilabel and len(task.names) > 2:
        raise TrainingError(
            f"--operating-point {config.operating_point}: of {len(task.names)} classes, the most probable one is predicted. "
            "Omit the option, or choose a positive class with --positive."
        )
    return replace(task, rule=rule, is_locked=config.lock_test)


def _locked(
    task: Task, cache: EmbeddingCache, heads: Sequence[HeadSpec], config: ExperimentConfig, training: TrainingConfig,
    directory: Path,
) -> AnalysisPlan | None:  # fmt: skip
    """Fix the analysis plan if the test split is locked; else count this training where another run has locked it."""
    if not config.lock_test:
        count_training(task, cache, directory, config.splits_from)
        return None
    if config.suspects_in_test:
        raise TrainingError(
            "--suspects-in-test looks at the test split, which --lock-test locks. Omit one of the options."
        )
    own = {**vars(config), **vars(training)}
    unrelated = {
        "training",
        "with_tensorboard",
        "with_digests",
        "overwrite",
        "splits_from",
        "memory_limit",
        "device",
        "lock_test",
    }
    return lock_test(task, cache, heads, {name: own[name] for name in sorted(own.keys() - unrelated)}, directory)


def checked(task: Task, cache: Path, directory: Path, config: ExperimentConfig) -> Leakage:
    """Refuse data that contradict themselves or leak, and state what is to be known of the splits."""
    state_mixed_patients(task)
    if config.splits_from is None:
        splits = dict(zip(compress(task.table.paths, task.readable), task.splits.tolist(), strict=True))
        warn_of_moved(directory, cache, task.table.name, config.training.seed, splits)
    conflicting = check_conflicts(task, allowed=config.allow_conflicts)
    return replace(check_leakage(task, allowed=config.allow_leakage), conflicting=conflicting)


def _reviewed(run: Run, task: Task, scored: Scored, *, suspects_in_test: bool) -> Run:
    """Return the run with what a reviewer would ask of the selected head and the dataset, and with its warnings."""
    probabilities, seed = scored.probabilities[scored.selected], run.config.seed
    shortcuts = audit(task, seed)
    for attribute in shortcuts:
        if attribute.is_shortcut:
            logger.warning("%s", attribute.warning)
    of_files = _of_files(run)
    if of_files:
        logger.warning("%s", of_files)
    run = replace(
        run,
        comparisons=compare(task, scored),
        assessment=assess(task, scored.selected, probabilities, prevalence=run.config.prevalence),
        shortcuts=shortcuts,
        suspects=find_suspects(task, NESTED, run.out_of_fold, probabilities, seed, in_test=suspects_in_test),
    )
    return replace(run, config=replace(run.config, warnings=tuple(_warnings(run))))


def _warnings(run: Run) -> Iterator[str]:
    """List what a reader must know before trusting the run's scores."""
    if run.leakage is not None:
        yield from leakage_warnings(run.leakage)
        if run.leakage.conflicting is not None:
            yield run.leakage.conflicting.warning
    if run.config.dataset.patients_hint:
        yield run.config.dataset.patients_hint
    if run.covariates is not None:
        yield from (one.caution for one in run.covariates.columns if one.caution)
    yield from (f"{one.warning[0].upper()}{one.warning[1:]}" for one in run.shortcuts if one.is_shortcut)
    if _of_files(run):
        yield _of_files(run)


def _of_files(run: Run) -> str:
    """Return the warning of what files tell; empty with a locked test split, whose scores it has. The report states it."""
    return "" if run.config.plan is not None else run.warning_of_files


def _run_config(
    task: Task,
    development: Development,
    cache: EmbeddingCache,
    config: ExperimentConfig,
    heads: Sequence[HeadSpec],
    fitted: Mapping[str, Variant],
    views: ViewSet,
) -> RunConfig:
    """Return the record of a run, without its command and its time."""
    return RunConfig(
        command="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        head_seconds={name: sum(one.head.seconds for one in variant.members) for name, variant in fitted.items()},
        n_cross_fit=len(development.folds) if task.is_cross_fitted else None,
        select=config.select,
        streamed_bytes=task.looks.rows.limit_bytes if isinstance(task.looks.rows, StreamedRows) else None,
        dataset=dataset_facts(task),
        embeddings=embedding_facts(task, cache, views.views),
        versions=versions_used(),
        machine=machine_used(torch.get_num_threads()),
        **vars(config.training),
        **{field.name: getattr(config, field.name) for field in fields(ScoringConfig)},
        options=_options(config, heads),
    )


def _options(config: ExperimentConfig, heads: Sequence[HeadSpec]) -> TrainOptions:
    """Return what was asked for, so that `replay` can train again."""
    asked = {field.name: getattr(config, field.name) for field in fields(TrainOptions) if field.name != "heads"}
    asked["label_columns"] = None if config.label_columns is None else tuple(config.label_columns)
    asked["splits_from"] = None if config.splits_from is None else str(config.splits_from)
    return TrainOptions(heads=tuple(spec.name for spec in heads), **asked)
