"""Whether the intervals of folds, of random splits and of learning curves cover the truth as often as they say."""

from collections.abc import Iterable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from hoarfrost.evaluation import Estimate, delong_ci, roc_auc
from hoarfrost.evaluation.extrapolation import extrapolate
from hoarfrost.evaluation.intervals import pooled_area, variance_inflation
from hoarfrost.evaluation.stability import mean_over_splits
from tests.benchmarks.measurement import Measurement
from tests.benchmarks.statistics import N_FIGURES, N_OF_FIGURES, coverage
from tests.support.curves import LAWS, SHARES, drawn_curve, law
from tests.support.curves import N_DRAWS as CURVE_DRAWS
from tests.support.folds import Drawn, areas_of_splits, drawn, pooled_scores, ridge, true_auc

Ints = npt.NDArray[np.int64]

N_SPLITS = 20
N_FOLDS, LEARNERS = 5, ((16, 1.2, 5.0), (16, 2.2, 5.0), (512, 2.0, 300.0), (512, 3.2, 300.0), (512, 3.2, 30.0))


def folds_coverage(_: Path) -> list[Measurement]:
    """Pooled predictions of five folds by ridge regression: the average AUC of such heads, on as many images."""
    return [_folds_cell(n, *kind) for n, kind in product(N_OF_FIGURES, LEARNERS)]


def _folds_cell(n: int, n_features: int, distance: float, penalty: float) -> Measurement:
    rng, areas = np.random.default_rng(0), []
    found: dict[str, list[tuple[float, float]]] = {"used": [], "of one test split": []}
    for _ in range(N_FIGURES if n < N_OF_FIGURES[-1] else N_FIGURES // 2):
        data = drawn(rng, n, n_features=n_features, distance=distance)
        pooled, weights = pooled_scores(rng, data, penalty=penalty, n_folds=N_FOLDS)
        areas += [true_auc(one, data) for one in weights]
        plain, two = Estimate(roc_auc(data.y, pooled), None, None), np.column_stack([-pooled, pooled])
        used = pooled_area(plain, data.y, two, None, variance_inflation(N_FOLDS))
        assert used.interval is not None
        found["used"].append(used.interval)
        found["of one test split"].append(delong_ci(data.y, pooled))
    what = f"pooled AUC of {N_FOLDS} folds, n = {n}, {n_features} features, penalty {penalty:g}: covers"
    return coverage(what, found, float(np.mean(areas)))


def splits_coverage(_: Path) -> list[Measurement]:
    """Return the coverage of the interval of the mean AUC over random splits, of the average AUC of such heads."""
    return [_splits_cell(n, *kind) for n, kind in product(N_OF_FIGURES, LEARNERS)]


def _splits_cell(n: int, n_features: int, distance: float, penalty: float) -> Measurement:
    rng, truths = np.random.default_rng(0), []
    found: dict[str, list[tuple[float, float]]] = {"used": [], "Student's t with Nadeau and Bengio's variance": []}
    by_t = t.ppf(0.975, N_SPLITS - 1) * np.sqrt(1 / N_SPLITS + 1 / (N_FOLDS - 1))
    for _ in range(N_FIGURES):
        data = drawn(rng, n, n_features=n_features, distance=distance)
        areas, influences, weights = areas_of_splits(rng, data, penalty=penalty, n_splits=N_SPLITS)
        truths += [true_auc(one, data) for one in weights]
        used = mean_over_splits(areas, influences, data.y, None, N_FOLDS)
        assert used.interval is not None
        centre, half = np.mean(areas), by_t * np.std(areas, ddof=1)
        for method, ends in zip(found, (used.interval, (float(centre - half), float(centre + half))), strict=True):
            found[method].append(ends)
    what = f"mean AUC of {N_SPLITS} random splits, n = {n}, {n_features} features, penalty {penalty:g}: covers"
    return coverage(what, found, float(np.mean(truths)))


def learning_curve_band(_: Path) -> list[Measurement]:
    """Count how often the band of an extrapolated learning curve contains the law, or new heads, at twice the images."""
    cells = list(product(LAWS, (200, 1000)))
    return [*(_law_cell(*cell) for cell in cells), *(_ridge_curve_cell(n) for n in (200, 1000))]


def _law_cell(parameters: tuple[float, float, float], n: int) -> Measurement:
    rng = np.random.default_rng(0)
    curves = (drawn_curve(rng, parameters, n, deviation=0.2) for _ in range(N_FIGURES))
    a, b, c = parameters
    what = f"learning curve {a:g} - {b:g} (n/10)^-{c:g} to n = {n}: band at 2n covers"
    return _band(what, curves, n, law(parameters, 2 * n), "93 to 99%")


def _ridge_curve_cell(n: int) -> Measurement:
    """Train ridge regression on shares of n samples, and on many sets of 2n; draws of half of them share many samples."""
    rng = np.random.default_rng(0)
    draw = partial(drawn, rng, n_features=64, distance=2.0)

    def trained(data: Drawn, rows: Ints) -> float:
        own = Drawn(data.y[rows], data.x[rows], data.delta)
        return true_auc(ridge(own, np.ones(len(rows), bool), 30.0), data)

    def of_each_class(data: Drawn, share: float) -> Ints:
        classes = [rng.permutation(np.flatnonzero(data.y == value)) for value in (0, 1)]
        return np.concatenate([rows[: round(share * len(rows))] for rows in classes])

    def curve() -> tuple[list[int], list[list[float]]]:
        data = draw(n)
        counts = {share: CURVE_DRAWS if share < 1 else 1 for share in SHARES}
        areas = [[trained(data, of_each_class(data, share)) for _ in range(k)] for share, k in counts.items()]
        return [round(share * n) for share in SHARES], areas

    truth = float(np.mean([trained(draw(2 * n), np.arange(2 * n)) for _ in range(200)]))
    what = f"learning curve of ridge regression, n = {n}: band at 2n covers new heads"
    return _band(what, (curve() for _ in range(N_FIGURES // 2)), n, truth, "stated only")


def _band(
    what: str, curves: Iterable[tuple[list[int], list[list[float]]]], n: int, truth: float, demanded: str
) -> Measurement:
    found = [extrapolate(sizes, areas, [2 * n]) for sizes, areas in curves]
    drawn_ones = [one for one in found if not one.reason]
    covers = float(np.mean([one.low[0] <= truth <= one.high[0] for one in drawn_ones]))
    width = float(np.mean([one.high[0] - one.low[0] for one in drawn_ones]))
    share = len(drawn_ones) / len(found)
    measured = f"{covers:.1%}, mean width {width:.3f}; drawn in {share:.0%}"
    return Measurement(what, measured, demanded, {"covers": covers, "width": width, "drawn": share})


MEASUREMENTS = {
    "folds_coverage": folds_coverage,
    "splits_coverage": splits_coverage,
    "learning_curve_band": learning_curve_band,
}
