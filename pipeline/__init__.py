"""Extract embeddings of medical images once, then train, score and use classifiers on them.

This is the Python interface: extraction, arrays for scikit-learn, training, prediction. Importing it is fast; heavy
libraries are loaded by the first call that needs them. `hoarfrost.evaluation` has the statistics, on arrays alone.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hoarfrost.features.extraction.plan import ExtractOptions, ExtractSummary
    from hoarfrost.inference.predict import Predictor
    from hoarfrost.runs import Run
    from hoarfrost.training import TrainingConfig

__version__ = "0.1.0"

# Torch's threads wait for one another at the end of each layer, and by default they wait by spinning. Beside any other
# work on the machine that makes extraction several times slower. It is read when torch is loaded; the user's choice counts.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["Data", "extract", "load_data", "open_predictor", "train"]


@dataclass(frozen=True)
class Data:
    """A cached dataset as arrays, its n readable images in the dataset's order.

    Attributes
    ----------
    X : ndarray (n, D) float32, or (n, V, D) of V views
        Embeddings.
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 1, 0 and -1 (unknown)
        Class numbers; or which of several labels each image has.
    names : tuple of str
        The names of the C classes, or labels.
    splits : ndarray (n,) of "train", "val" or "test"
        The splits that `train` uses: no patient is in two.
    groups : ndarray (n,) int64
        Images of the same patient or of the same bytes, and near-identical ones where patients are unknown, have the same
        number: for scikit-learn's `GroupKFold`.
    paths : tuple of str, n of them
        Each image's path, relative to the dataset's folder.
    attributes : mapping of list of str, n of them
        The dataset's further columns by name, as texts; without those that are labels.
    """

    X: "npt.NDArray[np.float32]"
    y: "npt.NDArray[np.int64]"
    names: tuple[str, ...]
    splits: "npt.NDArray[np.str_]"
    groups: "npt.NDArray[np.int64]"
    paths: tuple[str, ...]
    attributes: Mapping[str, list[str]]


def extract(
    data: str | Path, cache: str | Path, options: "ExtractOptions | None" = None, *, name: str | None = None
) -> "ExtractSummary":
    """Compute the embeddings that are not in the cache yet, and record the dataset in it, as `hoarfrost extract` does.

    Parameters
    ----------
    data : str or path
        A folder, a CSV, an npz, or a URL of one of the first two.
    cache : path
        The cache's HDF5 file; created if it is missing.
    options : hoarfrost.features.extraction.plan.ExtractOptions, optional
        Weights, device, precision and others; by default those of the command.
    name : str, optional
        The dataset's name in the cache; by default that of its folder or file.

    Returns
    -------
    ExtractSummary
        `images` = `embedded` + `reused` + `failed`.

    Raises
    ------
    HoarfrostError
        One of its children, for the dataset, the weights, the cache, or (with `on_error="fail"`) an image.
    """
    from hoarfrost.features.extraction.extract import extract as embed

    return embed(data, Path(cache), name=name, options=options)


def load_data(
    cache: str | Path,
    dataset: str | None = None,
    *,
    positive: Sequence[str] = (),
    label_columns: Sequence[str] | None = None,
    seed: int = 0,
    near_duplicates: str = "group",
    views: Sequence[str] = (),
) -> Data:
    """Read a cached dataset as arrays.

    Parameters
    ----------
    cache : path
        The cache's HDF5 file, as `hoarfrost extract` writes it.
    dataset : str, optional
        Which of its datasets; not needed if there is only one.
    positive : sequence of str
        Labels that count as class 1; makes the task binary.
    label_columns : sequence of str, optional
        Label columns of 0 and 1, if images may have several labels. If empty, all such columns.
    seed : int
        Seed of the splits, if the dataset does not have any.
    near_duplicates : "group", "warn" or "ignore"
        Whether near-identical images are one group where patients are unknown: only "group" does it.
    views : sequence of str
        Names of views, as `head.views` of a predictor has them; by default the first that all images have.

    Returns
    -------
    Data

    Raises
    ------
    HoarfrostError
        One of its children, for the cache, the labels or the splits.
    """
    import numpy as np

    from hoarfrost.experiment.task import read_task
    from hoarfrost.experiment.views import AUTO
    from hoarfrost.features.cache import EmbeddingCache

    with EmbeddingCache(Path(cache)) as opened:
        task = read_task(
            opened, dataset, positive, seed, label_columns=label_columns, near_duplicates=near_duplicates,
            views=",".join(views) or AUTO,
        )  # fmt: skip
        x = task.looks.array() if len(views) > 1 else task.embeddings(np.arange(len(task.y)))
    paths = tuple(task.table.paths[place] for place in np.flatnonzero(task.readable))
    return Data(x, task.y, task.names, task.splits, task.groups, paths, task.attributes())


def train(
    cache: str | Path | Sequence[str | Path],
    run: str | Path,
    heads: Sequence[str] = (),
    *,
    config: "TrainingConfig | None" = None,
    **options: Any,
) -> "Run":
    """Train heads on a cached dataset, score them, and write a run folder, as `hoarfrost train` does.

    Parameters
    ----------
    cache : path, or sequence of paths
        Several caches hold the same images, each of another encoder; their embeddings are side by side.
    run : path
        The run folder. An earlier run there is replaced; if it has a report, only with `overwrite=True`.
    heads : sequence of str
        Specifications such as "linear" or "mlp:256"; by default those of the command.
    config : hoarfrost.training.TrainingConfig, optional
        Epochs, patience, seeds and others; by default those of the command.
    **options
        `dataset`, `positive`, `label_columns`, `n_folds`, `per_patient`, `prevalence` and the other attributes of
        `hoarfrost.experiment.experiment.ExperimentConfig`.

    Returns
    -------
    Run

    Raises
    ------
    HoarfrostError
        One of its children, for the cache, the labels, the splits, the heads, or the run folder.
    TypeError
        If an option does not exist.
    """
    from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
    from hoarfrost.heads.config import TrainingConfig
    from hoarfrost.heads.specs import parse_heads

    experiment = ExperimentConfig(training=config or TrainingConfig(), **options)
    caches = [Path(one) for one in ([cache] if isinstance(cache, str | Path) else cache)]
    return run_experiment(caches, Path(run), parse_heads(list(heads)), experiment)


def open_predictor(source: str | Path, head: str | None = None, *, coverage: float = 0.9) -> "Predictor":
    """Open a head of a run, or a head file, to predict embeddings.

    Parameters
    ----------
    source : path
        The run folder, or a head file.
    head : str, optional
        Which of the run's heads; by default the selected one.
    coverage : float, in (0, 1)
        Coverage of the conformal sets.

    Returns
    -------
    Predictor
        Its `predict` takes embeddings (n, D), or (n, V, D) of the V views in `head.views`, and returns a `Prediction`.

    Raises
    ------
    RunError
        If the source is neither, is damaged or from another version, or the run does not have this head.
    """
    from hoarfrost.inference.predict import open_predictor as opened

    return opened(Path(source), head, coverage=coverage)
