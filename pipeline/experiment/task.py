"""The task: a cached dataset's embeddings, classes and splits, checked."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.units import patient_numbers, units_of
from hoarfrost.experiment.classes import class_names, classes_of, label_matrix
from hoarfrost.experiment.duplicates import FEWEST_FOR_CORES, GROUP, WARN, NearDuplicates, search_near_duplicates
from hoarfrost.experiment.earlier import kept_splits
from hoarfrost.experiment.identities import Identities, identities_of
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.experiment.splits import SplitInput, Strings, class_masks, merged_groups, rule_of
from hoarfrost.experiment.views import AUTO, chosen_views
from hoarfrost.features.cache import DatasetTable, EmbeddingCache, KeyIndex, Keys, are_unseen, file_keys
from hoarfrost.features.encoder.registry import DEFAULT, EncoderSpec
from hoarfrost.features.errors import TrainingError
from hoarfrost.features.facts import Facts
from hoarfrost.features.processors import usable_memory
from hoarfrost.runs import Predictions
from hoarfrost.training import HeldRows, Labelled, Looks, Rows, StreamedRows, TrainedHead, committee_of
from hoarfrost.training.rows import gathered

LEAST_KNOWN = 0.99  # of the images, for their recorded facts to be used
FEWEST_TO_SCORE = 2  # images of a class in a split
MEMORY_SHARE = 0.5  # of the process's memory, for embeddings, if no limit is given
GPU_SHARE = 0.8  # of what is free on a GPU, for the embeddings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task(ScoredTask):
    """The classes to learn, and the images with their embeddings.

    Attributes
    ----------
    looks : Looks
        Embeddings (n, D) float32 of the readable images, in one view or several.
    identities : ndarray (n,) uint64
        By which images are assigned to splits, see `hoarfrost.experiment.splits.identities_of`.
    near : NearDuplicates
        What is known of near-identical images. Those that are kept together are in `groups` too.
    encoder : EncoderSpec
        The network that the embeddings are of.
    is_locked : bool
        Nothing but the test scores may use the test split.
    facts : Facts or None
        What the cache recorded of the files; None unless it did so for nearly all of the readable images: otherwise a
        classifier would learn which ones were extracted when.
    is_region : bool
        Each image is one region of a file's.
    files : ndarray (n,) int64
        Equal numbers for images of the same bytes, of which several may be regions.
    """

    looks: Looks
    identities: Identities
    files: Ints
    near: NearDuplicates = field(default_factory=lambda: NearDuplicates(WARN))
    encoder: EncoderSpec = DEFAULT
    is_locked: bool = False
    facts: Facts | None = None
    is_region: bool = False

    @property
    def near_groups(self) -> Ints | None:
        """The groups (n,) of near-identical images that are kept together; None if none were searched."""
        return self.near.groups

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views, the preferred one first."""
        return self.looks.views

    @cached_property
    def x(self) -> Rows:
        """The embeddings (n, D) of the first view."""
        return self.looks.first()

    def predicted_by(self, heads: Sequence[TrainedHead], rows: Ints) -> list[Floats]:
        """Return the probabilities (m, C) of several trained heads for some rows."""
        return [self.predicted_with([one], [1.0], rows) for one in heads]

    def predicted_with(self, heads: Sequence[TrainedHead], weights: Sequence[float], rows: Ints) -> Floats:
        """Return the probabilities (m, C) of a committee of trained heads for some rows."""
        exact = committee_of(heads, weights, self.views, is_multilabel=self.is_multilabel).exact()
        found = np.empty((len(rows), len(self.names)))
        for places, part in self.looks.blocks(rows):
            found[places] = exact.probabilities(part)
        return found

    @property
    def is_small(self) -> bool:
        """Whether one core computes its predictions faster than several that wait for one another."""
        return len(self.y) < FEWEST_FOR_CORES

    @property
    def is_streamed(self) -> bool:
        """Whether embeddings are read from the cache in parts, because they exceed the memory limit."""
        return isinstance(self.looks.rows, StreamedRows)

    def embeddings(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Return the embeddings (m, D) of some rows, in the first view."""
        return gathered(self.x, rows)

    def labelled(self) -> Labelled:
        """Return embeddings and labels for training, on the device."""
        return Labelled(self.looks, torch.from_numpy(self.y).to(self.looks.rows.device))


def read_task(
    cache: EmbeddingCache,
    dataset: str | None,
    positive: Sequence[str],
    seed: int,
    *,
    label_columns: Sequence[str] | None = None,
    memory_limit: int | None = None,
    device: str = "cpu",
    per_patient: str | None = None,
    cross_fit: bool | None = None,
    near_duplicates: str = GROUP,
    earlier: Predictions | None = None,
    views: str = AUTO,
) -> Task:
    """Read a dataset from the cache, and choose its classes and splits.

    Parameters
    ----------
    cache : EmbeddingCache
        Must stay open while the task is used: embeddings that exceed the memory limit are read from it in parts.
    dataset : str or None
        Which of the cache's datasets; not needed if there is only one.
    positive : sequence of str
        Labels that count as class 1; makes the task binary.
    seed : int
        Seed of the splits, if the dataset does not have any.
    label_columns : sequence of str, optional
        Label columns of 0 and 1, if images may have several labels. If empty, all such columns.
    memory_limit : int, optional
        Bytes that embeddings may take; by default half of the memory that this process may use.
    device : str
        Where heads are trained.
    per_patient : "mean", "max" or None
        Metrics count patients, and join their images' probabilities in this way.
    cross_fit : bool, optional
        Whether all images but those of the test split are for training and, by cross-fitting, for validation; by default
        where the dataset has no validation split.
    near_duplicates : "group", "warn" or "ignore"
        Whether near-identical images count as one group where patients are unknown, see `search_near_duplicates`.
    earlier : Predictions, optional
        Those of an earlier run, whose splits are kept.
    views : str
        Names of views or of sets of views; "auto" for all that each image has.

    Raises
    ------
    HoarfrostError
        One of its children, if the cache, the labels or the splits cannot be used.
    """
    encoder = cache.header.fingerprint.encoder  # refused now: no report could describe it
    table = cache.dataset(dataset)
    readable = table.rows >= 0
    if label_columns is None:
        classes, positive_labels, y = classes_of(table, readable, positive)
    else:
        classes, y = label_matrix(table, readable, label_columns, positive)
        positive_labels = None
    names = class_names(classes, positive_labels)
    patients = None if table.patients is None else list(compress(table.patients, readable))
    if cross_fit is None:
        cross_fit = table.splits is None or "val" not in set(compress(table.splits, readable))
    looks = read_looks(cache, table, views, memory_limit=memory_limit, device=device)
    _state_unseen(cache, table, readable)
    test = None if table.splits is None else np.array([one == "test" for one in compress(table.splits, readable)])
    near = search_near_duplicates(
        looks,
        near_duplicates,
        knows_patients=patients is not None,
        given_test=test if test is not None and test.any() else None,
    )
    # The same bytes, patient, or near-identical images.
    keys = cache.keys(table.rows[readable])
    files = files_of(keys)
    groups = merged_groups(files, *([] if patients is None else [patients]), *near.memberships)
    identities = identities_of(keys, patients)
    kept = None if earlier is None else kept_splits(earlier, table, readable)
    of_units = _of_patients(y, len(names), patients, per_patient)
    splits, split_by = _splits(
        table, readable, of_units, groups, names, seed, cross_fit=cross_fit, identities=identities, earlier=kept
    )
    numbers = None if patients is None else patient_numbers(patients)
    task = Task(
        table=table, readable=readable, y=y, groups=groups, splits=splits, split_by=split_by, classes=classes,
        positive=positive_labels, names=names, patients=numbers, per_patient=per_patient, is_cross_fitted=cross_fit,
        looks=looks, identities=identities, near=near, encoder=encoder, facts=mostly_known(cache.facts(table.rows[readable])),
        is_region=cache.header.is_of_regions, files=files,
    )  # fmt: skip
    _check_per_patient(task)
    _check_splits(task)
    return task


def files_of(keys: Keys) -> Ints:
    """Return equal numbers (n,) for images of the same bytes, whatever regions of them they are, by their keys (n, 32)."""
    return KeyIndex(file_keys(keys)).firsts()


def mostly_known(facts: Facts) -> Facts | None:
    """Return facts of images; None if those of more than 1% are unknown."""
    return facts if facts.known.mean() >= LEAST_KNOWN else None


def _state_unseen(cache: EmbeddingCache, table: DatasetTable, readable: npt.NDArray[np.bool_]) -> None:
    """State that identical files cannot be found where the images' bytes are not known."""
    n_unseen = int(are_unseen(cache.keys(table.rows[readable])).sum())
    if n_unseen:
        logger.warning(
            "%s: the bytes of %s images are not known, because their embeddings were imported. Identical files are not "
            "searched among them; near-duplicates are, by their embeddings.", table.name, f"{n_unseen:,}",
        )  # fmt: skip


def _of_patients(y: Ints, n_classes: int, patients: Sequence[str] | None, per_patient: str | None) -> Ints:
    """Return the classes that splits need enough of: the images', or if patients are scored, those of their patients."""
    if patients is None or per_patient is None or y.ndim == 2:
        return y
    try:
        units = units_of(y, n_classes, patient_numbers(patients), per_patient)
    except ValueError:  # `_check_per_patient` says why patients cannot be scored
        return y
    return y if units.members is None else units.y[units.members]


def _check_per_patient(task: Task) -> None:
    if task.per_patient is None:
        return
    option = f"--per-patient {task.per_patient}"
    if task.patients is None:
        raise TrainingError(
            f"{option}: the dataset {task.table.name!r} has no patient column. Add one to its CSV and extract again, or omit "
            "the option."
        )
    if task.is_multilabel:
        raise TrainingError(f"{option}: images with several labels are scored as images. Omit the option.")
    for name, rows in task.scored.items():
        try:
            task.units(rows)
        except ValueError as error:
            split = "train" if name == "val" and task.is_cross_fitted else name
            raise TrainingError(f"{option}, the split {split}: {error} (--positive), or omit the option.") from error


def read_looks(
    cache: EmbeddingCache, table: DatasetTable, views: str, *, memory_limit: int | None = None, device: str = "cpu"
) -> Looks:
    """Read the embeddings of a dataset's readable images, see `read_task`; raise TrainingError if some are not finite."""
    names, rows = chosen_views(cache, table, views)
    made_by = cache.header.fingerprint
    layers = made_by.encoder.columns_of(made_by.layers) if made_by.layers else {}
    looks = Looks(_rows(cache, table.name, rows, memory_limit, device), names, layers)
    _check_embeddings(looks, list(compress(table.paths, table.rows >= 0)), cache)
    return looks


def _rows(cache: EmbeddingCache, name: str, rows: Ints, memory_limit: int | None, device: str) -> Rows:
    """Read the embeddings of rows (n, V) into memory, that of a GPU if it has room; else stream them."""
    dim, n_looks = cache.header.dim, rows.shape[1]
    rows = rows.ravel()
    n_bytes, limit = len(rows) * dim * 4, memory_limit or MEMORY_SHARE * usable_memory()
    if n_bytes > limit:
        text = "%s: %.1f GB of embeddings are streamed from the cache, %.1f GB at a time"
        logger.warning(text, name, n_bytes / 1e9, limit / 1e9)
        return StreamedRows(cache.embeddings, rows, dim, int(limit), torch.device(device), n_looks=n_looks)
    x = torch.from_numpy(cache.embeddings(rows))
    if device == "cuda" and n_bytes < GPU_SHARE * torch.cuda.mem_get_info()[0]:
        x = x.to(device)
    return HeldRows(x, torch.device(device))


def _check_embeddings(looks: Looks, paths: Sequence[str], cache: EmbeddingCache) -> None:
    """Refuse NaN and infinity: standardisation would spread them from one image to all."""
    broken = np.zeros(len(looks), bool)
    for places, part in looks.rows.blocks(np.arange(len(looks.rows))):
        wrong = ~part.isfinite().all(dim=1).cpu().numpy()
        broken[places[wrong] // len(looks.views)] = True
    if broken.any():
        raise TrainingError(
            f"{cache.path}: the embeddings of {broken.sum()} of {len(paths)} images are not finite (first: "
            f"{paths[int(broken.argmax())]}). The weights {cache.header.weights} are probably damaged; extract with others."
        )


def _splits(
    table: DatasetTable, readable: npt.NDArray[np.bool_], y: Ints, groups: Ints, names: tuple[str, ...], seed: int, *,
    cross_fit: bool, identities: Identities, earlier: Strings | None,
) -> tuple[Strings, str]:  # fmt: skip
    """Divide the images by the rule that applies to the dataset; return the splits and the rule's name."""

    def column(name: str) -> list[str] | None:
        return list(compress(table.attributes[name], readable)) if name in table.attributes else None

    given = None if table.splits is None else np.array(list(compress(table.splits, readable)), dtype="<U5")
    if given is not None and not (given == "train").any():
        raise TrainingError(f"The dataset {table.name!r} has no images in the split train.")
    images = SplitInput(
        y, groups, names, seed, given, table.patients is not None, cross_fit, identities, earlier, column
    )
    rule = rule_of(images)
    return rule.divide(images), rule.name


def _check_splits(task: Task) -> None:
    """Refuse a split without enough images of a class to train on or score."""
    scored = {name: rows for name, rows in task.scored.items() if name == "test" or not task.is_cross_fitted}
    for name, rows in {"train": task.rows_of("train"), **scored}.items():
        y = task.units(rows).y if name in scored else task.y[rows]
        unit = "image(s)" if task.per_patient is None or name == "train" else "patient(s)"
        counts = {which: int(mask.sum()) for which, mask in class_masks(y, task.names).items()}
        for which, count in counts.items():
            if count < FEWEST_TO_SCORE:
                all_counts = ", ".join(f"{n} {label}" for label, n in zip(task.names, counts.values(), strict=False))
                raise TrainingError(
                    f"The split {name} has {count} {unit} of {which}. At least {FEWEST_TO_SCORE} are needed to train on it "
                    f"and to score it (the split has {all_counts}). Add images, {_other_splits(task)}"
                )


def _other_splits(task: Task) -> str:
    if task.is_multilabel:
        return "or omit the label (--label)."
    if task.table.splits is not None:
        return "or change the dataset's split column or folders."
    way = "use --positive LABEL for two classes" if len(task.names) > 2 else "divide them in a column named split"
    return f"or {way}. (The split was drawn here: the dataset does not have one.)"
