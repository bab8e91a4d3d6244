"""External validation: a run's head, or a head file, on a labelled cohort, with everything frozen."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hoarfrost.evaluation import Estimate
from hoarfrost.evaluation.checks import Bools, Floats
from hoarfrost.evaluation.shares import share
from hoarfrost.evaluation.shortcuts import AttributeAudit, audit_shortcuts
from hoarfrost.experiment.assessment import Fixed
from hoarfrost.experiment.facts import dataset_facts, embedding_facts, machine_used, versions_used
from hoarfrost.experiment.task import Task
from hoarfrost.external.aggregate import check_place, share_only
from hoarfrost.external.differences import differences_of
from hoarfrost.external.drops import drops_of, internal_figures, site_column
from hoarfrost.external.embedding import embedded_cohort
from hoarfrost.external.evaluation import assessed, bare_result, evaluation_config, evaluation_run, scored
from hoarfrost.external.frozen import frozen_of
from hoarfrost.external.one_class import check_classes
from hoarfrost.external.overlap import check_overlap
from hoarfrost.external.tasks import KnownLabels, cohort_task
from hoarfrost.external.training_images import SeenImages, seen_by
from hoarfrost.external.updating import updates_of
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.datasets import Dataset, read_table
from hoarfrost.features.datasets.pseudonyms import Pseudonyms, salt_path
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.plan import ExtractOptions, Progress
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.heads.specs import count_parameters
from hoarfrost.inference.predict.dataset import named_predictor
from hoarfrost.inference.predict.predictor import Predictor
from hoarfrost.runs import (
    EmbeddingFacts,
    External,
    HeadResult,
    Run,
    RunConfig,
    RunHeads,
    check_run_directory,
    read_heads,
    read_run,
    record_look,
    write_run,
)
from hoarfrost.runs.digests import digest_of
from hoarfrost.training.references import fitted_rows

FROZEN = (
    "Standardisation, weights, temperature, thresholds and conformal scores are those of the head. Nothing was fitted on the "
    "cohort."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CohortConfig:
    """How a cohort is evaluated.

    Attributes
    ----------
    cache : Path or None
        Where the cohort's embeddings are kept, for the report's images and for another head. None: they are not kept.
    name : str or None
        The cohort's name; by default that of its folder or file.
    weights : str or None
        Where the encoder's weights are now, if they were moved.
    prevalence : float or None
        Of the positive class where the head will be used.
    site : str or None
        The column whose values count as sites; by default one that is named like a site.
    allow_leakage : bool
        Continue even if the cohort shares patients or images with the training images.
    aggregate : Path or None
        Write this file, without a row of a patient, in place of an evaluation folder.
    overwrite : bool
        Replace an earlier evaluation even if it has a report, or an earlier `aggregate`.
    options : ExtractOptions
        How to read and compute; encoder, weights, precision, views and window are the head's.
    """

    cache: Path | None = None
    name: str | None = None
    weights: str | None = None
    prevalence: float | None = None
    site: str | None = None
    allow_leakage: bool = False
    aggregate: Path | None = None
    overwrite: bool = False
    options: ExtractOptions = field(default_factory=ExtractOptions)

    @classmethod
    def of(cls, **options: Any) -> "CohortConfig":
        """Return the configuration of some options, of which some are those of an extraction."""
        own = {one.name: options.pop(one.name) for one in fields(cls) if one.name in options}
        return cls(**own, options=ExtractOptions(**options))


@dataclass(frozen=True)
class _Model:
    """The head that is evaluated, with its run if that is known."""

    predictor: Predictor
    heads: RunHeads | None
    run: Run | None
    place: str

    @property
    def name(self) -> str:
        """The head's name."""
        return self.predictor.head.name

    @property
    def file(self) -> Path:
        """The head file."""
        return Path(self.place) if self.heads is None else self.heads.file_of(self.name)

    @property
    def words(self) -> str:
        """The head, and where it is."""
        return f"the head {self.name} of {self.place}"


def evaluate_cohort(
    data: Path | str,
    output: Path | None,
    *,
    run: Path | None = None,
    head: str | None = None,
    config: CohortConfig | None = None,
    command: Sequence[str] = (),
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Evaluate a head on labelled images that it was not trained on, and write an evaluation folder.

    Parameters
    ----------
    data : Path or str
        See `hoarfrost.features.datasets.read_dataset`.
    output : Path or None
        The folder to write; by default beside the run, or the head file: RUN-on-COHORT.
    run : Path, optional
        The run folder; without it `head` is a file.
    head : str, optional
        One of the run's heads, by default the selected one; or a head file.
    config : CohortConfig, optional
    command : sequence of str
        The command that the user typed, for the record.
    on_progress : callable
        Called after each batch.

    Returns
    -------
    Run
        With `external`, and the cohort as its test split.

    Raises
    ------
    HoarfrostError
        One of its children: the data, their labels, the run or head, an overlap with the training images, the output.
    """
    started, config = time.monotonic(), config or CohortConfig()
    model = _model(run, head)
    labels = KnownLabels.of(model.predictor.head, model.heads)
    read = _reader(data, labels, model, config)
    directory = _directory(output, data, model, config)
    _share_salt(config.cache, model.heads)
    with embedded_cohort(
        data, model.predictor.header, model.heads, read, cache=config.cache, weights=config.weights,
        options=config.options, on_progress=on_progress,
    ) as (cache, name):  # fmt: skip
        task = cohort_task(cache, cache.dataset(name), model.predictor.head, labels)
        found = _evaluated(directory, task, cache, model, config, command, started)
    looked_at = _run_of(model.file) if run is None else run
    if looked_at is not None:  # it shows the drop from the internal test, or the cohort may be that test split
        record_look(looked_at, f"evaluate {data}")
    if config.aggregate is None:
        write_run(found, {}, overwrite=config.overwrite)
    else:
        p = found.predictions.probabilities[found.selected]
        share_only(config.aggregate, found, task, p, digest_of(model.file))
    return found


def _model(run: Path | None, head: str | None) -> _Model:
    heads = None if run is None else read_heads(run)
    predictor = named_predictor(heads, head)
    place = str(head) if run is None else str(run)
    return _Model(predictor, heads, None if run is None else read_run(run, before_look=True), place)


def _run_of(file: Path) -> Path | None:
    """Return the run folder that a head file is in; None if it is elsewhere."""
    folder = file.resolve().parent
    return folder.parent if folder.name == "heads" else None


def _reader(
    data: Path | str, labels: KnownLabels, model: _Model, config: CohortConfig
) -> Callable[[Pseudonyms], Dataset]:
    def read(pseudonyms: Pseudonyms) -> Dataset:
        dataset = read_table(data, name=config.name, pseudonyms=pseudonyms, options=config.options.table)
        labels.check(dataset)
        if config.site is not None and config.site not in dataset.attributes:
            has = ", ".join(dataset.attributes) or "(none)"
            raise HoarfrostError(f"--site {config.site}: {dataset.source} has no such column. It has: {has}.")
        if config.cache is not None and model.heads is not None:
            own = model.heads.config
            is_own = config.cache.exists() and Path(own.embeddings.cache).exists()
            if is_own and config.cache.samefile(own.embeddings.cache) and dataset.name == own.dataset.name:
                raise HoarfrostError(
                    f"--cache {config.cache} already holds the training images under the name {dataset.name!r}. "
                    "Name the cohort with --name NAME."
                )
        return dataset

    return read


def _directory(output: Path | None, data: Path | str, model: _Model, config: CohortConfig) -> Path:
    """Return the folder or the aggregate to write, after a check that nothing else is lost there."""
    if config.aggregate is not None:
        check_place(config.aggregate, overwrite=config.overwrite)
        return config.aggregate
    if output is None:
        base = Path(model.place) if model.heads is not None else Path(model.place).with_suffix("")
        cohort = config.name or Path(str(data).rstrip("/")).stem or "cohort"
        output = base.with_name(f"{base.resolve().name}-on-{cohort}")
    check_run_directory(output, overwrite=config.overwrite, evaluates=True)
    return output


def _share_salt(cache: Path | None, heads: RunHeads | None) -> None:
    """Give a new cache the run's salt, so that a patient has the pseudonym that the run knows."""
    own = None if heads is None else salt_path(Path(heads.config.embeddings.cache))
    if cache is not None and own is not None and own.is_file() and not cache.exists():
        place = salt_path(cache)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(own, place)


def _evaluated(
    directory: Path, task: Task, cache: EmbeddingCache, model: _Model, config: CohortConfig, command: Sequence[str],
    started: float,
) -> Run:  # fmt: skip
    """Look at the cohort, check that training did not see it, then score it."""
    head = model.predictor.head
    seen = None if model.run is None else seen_by(model.run, len(task.y))
    keys = [key.tobytes() for key in cache.keys(task.table.rows[task.readable])]
    overlap, shared = check_overlap(task, keys, seen, head.seen, allowed=config.allow_leakage)
    p, is_novel = _predicted(task, model.predictor)
    novel = None if is_novel is None else share(is_novel, np.ones(len(is_novel), bool), task.patients)
    differences = differences_of(task, head, seen, novel, model.predictor.false_alarms)
    fixed = frozen_of(head, model.run)
    check_classes(task, p, fixed)
    result = scored(task, _base(model), p, fixed)
    assessment = assessed(task, head.name, p, fixed, prevalence=config.prevalence)
    column = site_column(task.attributes(), config.site)
    internal, figures = _internal(model, fixed)
    external = External(
        model.words, FROZEN, internal, differences, overlap, shared, config.allow_leakage and any(x.n for x in overlap),
        column, drops_of(figures, result, assessment, column), tuple(_notes(task, seen, model)),
        updates=updates_of(task, p, fixed, config.prevalence),
    )  # fmt: skip
    embeddings = embedding_facts(task, cache, head.views)
    if config.cache is None:
        embeddings = replace(embeddings, cache="")
    facts = replace(
        evaluation_config(_base_config(task, model, embeddings), task, embeddings, model.words, command, started, ()),
        machine=machine_used(torch.get_num_threads()), prevalence=config.prevalence, per_patient=head.per_patient,
    )  # fmt: skip
    found = evaluation_run(directory, task, [result], head.name, {head.name: p}, assessment, facts, external)
    return replace(found, shortcuts=_audited(task))


def _predicted(task: Task, predictor: Predictor) -> tuple[Floats, Bools | None]:
    """Return the probabilities (n, C), and which images are beyond the limit of novelty, if there is one."""
    p, is_novel = np.empty((len(task.y), len(task.names))), np.zeros(len(task.y), bool)
    has_limit = np.isfinite(predictor.novelty_threshold)
    for places, part in task.looks.blocks(np.arange(len(task.y))):
        found = predictor.predict(part.cpu().numpy())
        p[places] = found.probabilities
        if found.is_novel is not None:
            is_novel[places] = found.is_novel
    return p, is_novel if has_limit else None


def _base(model: _Model) -> HeadResult:
    """Return what is known of the head from its run, or from its file."""
    if model.run is not None:
        return model.run.head(model.name)
    members = model.predictor.head.members
    return bare_result(
        model.name, n_parameters=sum(count_parameters(one.module) for one in members), n_members=len(members)
    )


def _base_config(task: Task, model: _Model, embeddings: EmbeddingFacts) -> RunConfig:
    if model.heads is not None:
        return model.heads.config
    return RunConfig(
        **vars(TrainingConfig(device="cpu")), command="", created="", seconds=0.0, head_seconds={}, streamed_bytes=None,
        dataset=dataset_facts(task), embeddings=embeddings, versions=versions_used(), machine="",
    )  # fmt: skip


def _internal(model: _Model, fixed: Fixed) -> tuple[str, dict[str, Estimate]]:
    if model.run is None:
        return "A head file does not hold scores. To see the drop from the internal test, name its run with --run.", {}
    return internal_figures(model.run, model.name, fixed)


def _audited(task: Task) -> tuple[AttributeAudit, ...]:
    """Check for each attribute whether the embeddings predict it, and whether it is associated with the class."""
    attributes = task.attributes()
    if not attributes:
        return ()
    rows = fitted_rows(task.y, np.arange(len(task.y)))
    columns = {name: [cells[i] for i in rows] for name, cells in attributes.items()}
    return audit_shortcuts(task.embeddings(rows), task.y[rows], task.groups[rows], columns, seed=0)


def _notes(task: Task, seen: SeenImages | None, model: _Model) -> Iterator[str]:
    """Yield what a reader must know beside the figures."""
    if task.patients is None:
        yield "The patients of the cohort are unknown, so intervals treat its images as independent."
    if seen is not None and seen.reason:
        yield f"Some training images could not be looked at again. {seen.reason}"
    weights = model.predictor.header.weights
    if weights.startswith("random:"):
        yield f"The encoder has untrained weights ({weights}): these scores are a lower limit."
    errors = [task.table.errors[i] for i in np.flatnonzero(~task.readable)]
    if errors:
        paths = list(compress(task.table.paths, ~task.readable))
        yield f"{len(errors):,} images could not be read and are in no score. The first: {paths[0]}: {errors[0]}."
