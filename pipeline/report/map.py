"""The map of a run's embeddings: PCA and t-SNE in two dimensions, coloured by label, split or attribute."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import banded
from hoarfrost.inference.sources import RunSource
from hoarfrost.report.evaluation import SPLIT_NAMES
from hoarfrost.runs import SPLITS, Run

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MOST_POINTS = 5_000  # t-SNE takes seconds for these, and a reader can still see them
MOST_VALUES = 40  # of a column: beyond it the values are names or identifiers
FEWEST_FOR_TSNE = 20  # fewer have no neighbourhoods
N_COMPONENTS = 50  # of PCA, for t-SNE and neighbours: the rest is mostly noise
PERPLEXITY = 30
MAX_ITERATIONS = 500  # half of scikit-learn's; the map does not change any more
ANGLE = 0.7  # coarser than scikit-learn's 0.5, a third faster, with no visible difference
N_NEIGHBOURS = 10
N_COLOURS = 10
SIDE = 1000  # coordinates are whole numbers from 0 to this
LEAST_SPAN = 1e-9  # of a map, in standardised units: all embeddings may be the same
OTHERS = "(others)"


@dataclass(frozen=True)
class Colouring:
    """A column that colours the points. `of[i]` is the place of point i's value in `values`; `counts` are of `values`."""

    name: str
    values: tuple[str, ...]
    counts: tuple[int, ...]
    of: tuple[int, ...]
    same_neighbours: float
    by_chance: float


@dataclass(frozen=True)
class Layout:
    """A layout: "x,y" of each point, up to `SIDE` and `height`, and one SVG path per value of the first colouring."""

    name: str
    message: str
    height: int
    points: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddingMap:
    """All that the page shows of the map. `data` is for its script."""

    note: str
    n_neighbours: int
    layouts: tuple[Layout, ...]
    colourings: tuple[Colouring, ...]
    data: dict[str, object]


def map_of(run: Run, source: RunSource) -> EmbeddingMap:
    """Compute the map of a run's images by their embeddings.

    Parameters
    ----------
    run : Run
    source : RunSource

    Returns
    -------
    EmbeddingMap
        Of at most `MOST_POINTS` images, drawn at random with the run's seed.

    Raises
    ------
    CacheError
        If the embeddings cannot be read.

    Notes
    -----
    On one machine the same run and cache give the same map: all that is drawn is seeded.

    References
    ----------
    van der Maaten and Hinton (2008), Journal of Machine Learning Research 9, 2579-2605.
    """
    rows = np.arange(len(run.predictions.paths))
    if len(rows) > MOST_POINTS:
        rows = np.sort(np.random.default_rng(run.config.seed).choice(rows, MOST_POINTS, replace=False))
    view = (run.config.embeddings.views or source.cache.views)[0]
    x, shares = principal_components(source.embeddings([run.predictions.paths[i] for i in rows], view))
    n_neighbours = min(N_NEIGHBOURS, len(rows) - 1)
    colourings = _colourings(run, source, rows, _neighbours(x, n_neighbours))
    layouts = [
        _layout("PCA", f"its two directions hold {shares[:2].sum():.0%} of the variance", x[:, :2], colourings[0])
    ]
    if len(rows) >= FEWEST_FOR_TSNE and np.ptp(x, axis=0).any():  # t-SNE needs more than one point
        layouts.append(_layout("t-SNE", "near points are similar, far distances mean little", _tsne(x), colourings[0]))
    return EmbeddingMap(_note(run, len(rows)), n_neighbours, tuple(layouts), colourings, _data(layouts, colourings))


def _note(run: Run, n_points: int) -> str:
    n_images = len(run.predictions.paths)
    which = (
        f"All {n_images:,} images" if n_points == n_images else f"{n_points:,} of {n_images:,} images, drawn at random"
    )
    return f"{which} by their standardised embeddings. The map was not used for training or selection."


def principal_components(embeddings: "npt.NDArray[np.float32]") -> "tuple[Floats, Floats]":
    """Compute the principal components of standardised embeddings.

    Parameters
    ----------
    embeddings : ndarray (n, d)

    Returns
    -------
    components : ndarray (n, k) float64
        k is at most `N_COMPONENTS`.
    shares : ndarray (k,) float64
        Of all variance, descending.
    """
    x = embeddings.astype(np.float64)
    x -= x.mean(axis=0)
    deviation = x.std(axis=0)
    x /= np.where(deviation > 0, deviation, 1)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))  # ascending
    k = min(N_COMPONENTS, *x.shape)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :k]
    # A direction's sign is arbitrary: its largest entry is made positive, so that the same data give the same map.
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(k)] < 0, -1, 1)
    return x @ vectors, values[:k] / max(values.sum(), np.finfo(float).tiny)


def _tsne(x: "Floats") -> "Floats":
    from sklearn.manifold import TSNE

    # Rounded to single precision and to a common scale, as scikit-learn does, so that its start is well conditioned.
    x = (x / max(float(x[:, 0].std()), np.finfo(float).tiny)).astype(np.float32)
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    made = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=MAX_ITERATIONS, angle=ANGLE)
    found: Floats = np.asarray(made.fit_transform(x), np.float64)
    return found


def _neighbours(x: "Floats", n: int) -> "npt.NDArray[np.int64]":
    """Return each point's n nearest, (points, n)."""
    from sklearn.neighbors import NearestNeighbors

    found: npt.NDArray[np.int64] = NearestNeighbors(n_neighbors=n).fit(x).kneighbors(return_distance=False)
    return found


def _colourings(
    run: Run, source: RunSource, rows: "npt.NDArray[np.int64]", neighbours: "npt.NDArray[np.int64]"
) -> tuple[Colouring, ...]:
    """Return labels, splits and each attribute, in this order."""
    predictions = run.predictions
    paths = [predictions.paths[i] for i in rows]
    columns = {
        "label": [predictions.labels[i] or "(none)" for i in rows],
        "split": [SPLIT_NAMES[predictions.splits[i]] for i in rows],
    }
    of_dataset = run.config.dataset
    hidden = of_dataset.classes if of_dataset.is_multilabel else ()
    attributes = [(name, banded(c)) for name, c in source.attributes(paths).items() if name not in hidden]
    orders: dict[str, Sequence[str]] = {
        "label": of_dataset.classes,
        "split": [SPLIT_NAMES[split] for split in SPLITS],
    }
    own = [_colouring(name, values, neighbours, orders[name]) for name, values in columns.items()]
    return (*own, *(_colouring(name, values, neighbours, ()) for name, values in attributes if groups_images(values)))


def groups_images(column: Sequence[str]) -> bool:
    """Return whether a column groups images; names and identifiers do not, and may be private."""
    return 1 < len(set(column)) <= MOST_VALUES


def _colouring(
    name: str, column: Sequence[str], neighbours: "npt.NDArray[np.int64]", order: Sequence[str]
) -> Colouring:
    """Return a column with numbered values: in the given order, then by name; if there are many, the rarest share one."""
    counts = Counter(column)
    if len(counts) > N_COLOURS:
        common = {value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: N_COLOURS - 1]}
        column = [value if value in common else OTHERS for value in column]
        counts = Counter(column)
    rank = {value: i for i, value in enumerate(order)}
    values = sorted(counts, key=lambda value: (value == OTHERS, rank.get(value, len(rank)), value))
    number = {value: i for i, value in enumerate(values)}
    of = np.array([number[value] for value in column])
    shares = np.array([counts[value] for value in values]) / len(column)
    same = float((of[neighbours] == of[:, None]).mean())
    totals = tuple(counts[value] for value in values)
    return Colouring(name, tuple(values), totals, tuple(of.tolist()), same, float((shares**2).sum()))


def _layout(name: str, what: str, xy: "Floats", colouring: Colouring) -> Layout:
    low, high = xy.min(axis=0), xy.max(axis=0)
    scale = SIDE / max(float((high - low).max()), LEAST_SPAN)
    height = max(SIDE // 2, round(float((high - low)[1]) * scale))
    centred = (xy - (low + high) / 2) * [scale, -scale] + [SIDE / 2, height / 2]  # SVG's y points down
    points = tuple(f"{x},{y}" for x, y in np.rint(centred).astype(int).tolist())
    paths = tuple(
        "".join(f"M{point}h0" for point, own in zip(points, colouring.of, strict=True) if own == value)
        for value in range(len(colouring.values))
    )
    return Layout(name, f"{name} of {len(points):,} embeddings: {what}", height, points, paths)


def _data(layouts: Sequence[Layout], colourings: Sequence[Colouring]) -> dict[str, object]:
    """Return what the script needs, in few characters: one digit per point and colouring."""
    return {
        "layouts": [{"message": layout.message, "points": " ".join(layout.points)} for layout in layouts],
        "colourings": [
            {"name": one.name, "values": one.values, "counts": one.counts, "of": "".join(map(str, one.of))}
            for one in colourings
        ],
    }
