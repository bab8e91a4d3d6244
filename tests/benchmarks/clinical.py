"""Whether the intervals of what images add to covariates cover the true gain as often as they say."""

from itertools import product
from pathlib import Path

import numpy as np

from hoarfrost.evaluation.added_value import Gain
from tests.benchmarks.measurement import Measurement
from tests.benchmarks.statistics import N_FIGURES, coverage
from tests.support.clinical import Floats, cohort, estimated, gain_of_effects, gains_of, in_folds

N_POPULATION = 40_000
N_IN_FOLDS = 200  # cohorts, of which each is analysed five times
SIZES = (100, 300)  # of patients in the test split; four times as many to learn from
DISTANCES = (0.0, 1.2, 2.0)  # of the classes in the images; age and sex are worth an AUC of 0.72


def gain_coverage(_: Path) -> list[Measurement]:
    """Estimate what images add on a test split: ROC AUC and net benefit, over clinical data and over images."""
    cells = [*product(SIZES, DISTANCES, (1,)), (100, 1.2, 3)]
    return [one for cell in cells for one in _test_cell(*cell)]


def gain_in_folds(_: Path) -> list[Measurement]:
    """Estimate the same from the pooled predictions of nested folds."""
    return [one for distance in DISTANCES[1:] for one in _folds_cell(200, distance)]


def _test_cell(n_test: int, distance: float, n_images: int) -> list[Measurement]:
    rng, found, truths = np.random.default_rng(0), [], []
    population = cohort(rng, N_POPULATION, distance=distance)
    for _ in range(N_FIGURES):
        own, test = (cohort(rng, n, distance=distance, n_images=n_images) for n in (4 * n_test, n_test))
        parts, truth = estimated(rng, own, test, population)
        found.append(gains_of(parts))
        truths.append(truth)
    images = "" if n_images == 1 else f" with {n_images} images each"
    where = f"{n_test} test patients{images}, images {distance:g} SD apart"
    return _rows(where, found, np.array(truths), gain_of_effects(population))


def _folds_cell(n: int, distance: float) -> list[Measurement]:
    rng, found, truths = np.random.default_rng(0), [], []
    population = cohort(rng, N_POPULATION // 4, distance=distance)
    for _ in range(N_IN_FOLDS):
        parts, truth = in_folds(rng, cohort(rng, n, distance=distance), population)
        found.append(gains_of(parts))
        truths.append(truth)
    mean = np.broadcast_to(np.mean(truths, axis=0), (len(truths), 2, 2))
    return _rows(f"5 folds of {n} patients, images {distance:g} SD apart", found, mean, gain_of_effects(population))


def _rows(where: str, found: list[tuple[Gain, ...]], truths: Floats, of_effects: Floats) -> list[Measurement]:
    """Return the coverage of each gain, of the models' own and of what the effects allow."""
    rows = []
    for place, over in enumerate(("clinical data", "images")):
        areas = [one[place].roc_auc for one in found]
        benefits = [one[place].net_benefit for one in found]
        of_area = {
            "used": [
                (one.low - truth, one.high - truth) for one, truth in zip(areas, truths[:, place, 0], strict=True)
            ],
            "gain that the effects allow": [
                (one.low - of_effects[place], one.high - of_effects[place]) for one in areas
            ],
        }
        of_benefit = {
            "used": [
                (one.low - truth, one.high - truth)
                for one, truth in zip(benefits, truths[:, place, 1], strict=True)
                if one is not None and one.low is not None
            ]
        }
        rows += [
            coverage(f"gain over {over} in ROC AUC, {where}: covers", of_area, 0.0),
            coverage(f"gain over {over} in net benefit, {where}: covers", of_benefit, 0.0),
        ]
    return rows


MEASUREMENTS = {"gain_coverage": gain_coverage, "gain_in_folds": gain_in_folds}
