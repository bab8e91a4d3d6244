"""Whether intervals cover the truth as often as they say, and how fast the statistics are."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import norm

from hoarfrost.evaluation import (
    Estimate,
    bootstrap_auc_ci,
    delong_ci,
    evaluate_threshold,
    fit_temperature,
    newcombe_ci,
    roc_auc,
    score_subgroups,
)
from hoarfrost.evaluation.calibration import calibration_line
from hoarfrost.evaluation.calibration_curve import calibration_curve
from hoarfrost.evaluation.intervals import area
from hoarfrost.evaluation.subgroup_differences import SubgroupSample, heterogeneity
from tests.benchmarks.measurement import Measurement

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

N_SIMULATED = 2_000
PREVALENCES, AUCS = (0.1, 0.5), (0.75, 0.9)
N_PATIENTS = (100, 300)
IMAGES_A_PATIENT, SHARED_VARIANCE = 3, 0.7  # of the scores of one patient's images
N_SCORES, N_BOOTSTRAPPED, N_EMBEDDINGS = 1_000_000, 10_000, 100_000
REPEATS = 3
N_FOR_TEMPERATURE, TEMPERATURES, N_TEMPERATURES = (6, 20, 60, 200, 600), (0.5, 0.7, 1.0, 1.4, 2.0), 100
CORRELATIONS, N_OF_FIGURES, N_FIGURES, N_TRUE = (0.3, 0.7), (60, 150, 500), 500, 300_000
CLASS_SIZES = ((10, 90), (30, 30), (30, 300), (50, 50), (50, 450), (200, 200))
CURVE_SLOPES, N_CURVES_DRAWN, N_ALARMS = (1.0, 0.7, 0.5), 200, 1_000
PRIORS = (1e6, 1.0, 0.7, 0.5, 0.35, 0.25, 0.15)  # standard deviations of log T; the first is no prior

_GATE = """
import json, time
import numpy as np
from hoarfrost.evaluation.leakage import find_leakage
from hoarfrost.evaluation.near_duplicates import near_groups, near_pairs
from tests.benchmarks.peak import peak_mb
n = {n}
rng = np.random.default_rng(0)
x = rng.standard_normal((n, 512), dtype=np.float32)
splits = rng.permutation(np.repeat(["train", "val", "test"], [7 * n // 10, n // 10, n // 5]))
started = time.perf_counter()
if {grouped}:
    near = near_pairs(x)
    near_groups(near, n)
    found = find_leakage(None, splits, range(n), [str(i) for i in range(n)], near=near)
else:
    found = find_leakage(x, splits, range(n), *[[str(i) for i in range(n)]] * 2)
assert not (found.refused or found.n_near_duplicates)
print(json.dumps([time.perf_counter() - started, peak_mb()]))
"""


def delong_coverage(_: Path) -> list[Measurement]:
    """Binormal scores of independent samples, of fixed numbers of each class."""
    return [_delong_cell(*cell) for cell in product((100, 500), PREVALENCES, AUCS)]


def _delong_cell(n: int, prevalence: float, auc: float) -> Measurement:
    rng = np.random.default_rng(0)
    y_true = (np.arange(n) < prevalence * n).astype(np.int64)
    found: dict[str, list[tuple[float, float]]] = {"DeLong": [], "Newcombe": []}
    for _ in range(N_SIMULATED):
        score = rng.normal(size=n) + _distance(auc) * y_true
        found["DeLong"].append(delong_ci(y_true, score))
        found["Newcombe"].append(newcombe_ci(y_true, score))
    what = f"DeLong's interval, n = {n}, prevalence {prevalence}, AUC {auc}: covers"
    return coverage(what, found, auc)


def clustered_coverage(_: Path) -> list[Measurement]:
    """Patients with three images each, whose scores have most of their variance in common."""
    cells = list(product(N_PATIENTS, PREVALENCES, AUCS))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        return list(pool.map(_clustered_cell, *zip(*reversed(cells), strict=True)))[::-1]


def _clustered_cell(n_patients: int, prevalence: float, auc: float) -> Measurement:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(n_patients), IMAGES_A_PATIENT)
    y_true = (patients < prevalence * n_patients).astype(np.int64)
    found: dict[str, list[tuple[float, float]]] = {"patients": [], "DeLong": []}
    for seed in range(N_SIMULATED):
        own = np.sqrt(1 - SHARED_VARIANCE) * rng.normal(size=len(patients))
        shared = np.sqrt(SHARED_VARIANCE) * rng.normal(size=n_patients)[patients]
        score = own + shared + _distance(auc) * y_true
        drawn = bootstrap_auc_ci(y_true, np.column_stack([-score, score]), patients, seed=seed)
        found["patients"].append((drawn.low, drawn.high))
        found["DeLong"].append(delong_ci(y_true, score))
    what = (
        f"bootstrap over {n_patients} patients of {IMAGES_A_PATIENT} images, prevalence {prevalence}, AUC {auc}: covers"
    )
    return coverage(what, found, auc)


def figures_coverage(_: Path) -> list[Measurement]:
    """Calibration, shares, likelihood ratios and predictive values elsewhere, with three images a patient."""
    cells = list(product(CORRELATIONS, N_OF_FIGURES))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        return [row for rows in pool.map(_figures_cell, *zip(*cells, strict=True)) for row in rows]


def _figures_cell(shared_variance: float, n_patients: int) -> list[Measurement]:
    """Count how often each interval contains the figure of very many patients; probabilities are too extreme."""
    rng = np.random.default_rng(0)
    truth = _figures(rng, shared_variance, N_TRUE, with_patients=False)
    found: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(N_FIGURES):
        for name, one in _figures(rng, shared_variance, n_patients, with_patients=True).items():
            value = truth[name].value
            if one.low is not None and one.high is not None and value is not None:
                found[name].append(one.low <= value <= one.high)
    what = f"{n_patients} patients of {IMAGES_A_PATIENT} images, correlation {shared_variance:g}: covers"
    return [_row(f"{name}, {what}", float(np.mean(covers))) for name, covers in found.items()]


def _figures(
    rng: np.random.Generator, shared_variance: float, n_patients: int, *, with_patients: bool
) -> dict[str, Estimate]:
    patients = np.repeat(np.arange(n_patients), IMAGES_A_PATIENT)
    y_true = (rng.random(n_patients) < 0.3).astype(np.int64)[patients]  # drawn: the intercept depends on the share
    noise = np.sqrt(1 - shared_variance) * rng.normal(size=len(patients))
    noise += np.sqrt(shared_variance) * rng.normal(size=n_patients)[patients]
    distance = _distance(0.85)
    # Log-odds of normal scores, multiplied by 1.3: overconfident.
    p = 1 / (1 + np.exp(-1.3 * (distance * (noise + distance * (y_true - 0.5)) + np.log(0.3 / 0.7))))
    groups = patients if with_patients else None
    line = calibration_line(y_true, p, groups)
    point = evaluate_threshold(y_true, p, 0.3, groups=groups, prevalence=0.05)
    assert line.slope_interval is not None
    assert line.intercept_interval is not None
    assert point.at_prevalence is not None
    assert point.at_prevalence.ppv is not None
    assert point.at_prevalence.npv is not None
    return {
        "calibration slope": Estimate(line.slope, *line.slope_interval),
        "calibration intercept": Estimate(line.intercept, *line.intercept_interval),
        "sensitivity": point.sensitivity,
        "specificity": point.specificity,
        "LR+": point.lr_positive,
        "LR-": point.lr_negative,
        "PPV at 5%": point.at_prevalence.ppv,
        "NPV at 5%": point.at_prevalence.npv,
    }


def curve_coverage(_: Path) -> list[Measurement]:
    """Smooth calibration curves: the band at five probabilities, and the interval of the ICI."""
    cells = list(product(CURVE_SLOPES, N_OF_FIGURES, (1, IMAGES_A_PATIENT)))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        return [row for rows in pool.map(_curve_cell, *zip(*cells, strict=True)) for row in rows]


def _curve_cell(slope: float, n_patients: int, n_images: int) -> list[Measurement]:
    rng, at = np.random.default_rng(0), np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    patients = np.repeat(np.arange(n_patients), n_images)
    stated = rng.normal(0, 1.5, N_TRUE)
    truth, observed = float(np.abs(expit(slope * stated) - expit(stated)).mean()), expit(slope * logit(at))
    covers, inside = [], []
    for _ in range(N_CURVES_DRAWN):
        shared = rng.normal(size=n_patients)[patients]
        x = 1.5 * (np.sqrt(SHARED_VARIANCE) * shared + np.sqrt(1 - SHARED_VARIANCE) * rng.normal(size=len(patients)))
        y_true = (rng.random(n_patients)[patients] < expit(slope * x)).astype(np.int64)  # one draw for all images
        found = calibration_curve(y_true, expit(x), patients if n_images > 1 else None)
        if found.ici is None or found.ici.interval is None:
            continue
        covers.append(found.ici.interval[0] <= truth <= found.ici.interval[1])
        low, high = (np.interp(at, found.p, ends) for ends in (found.low, found.high))
        inside.append((low <= observed) & (observed <= high))
    what = f"{n_patients} patients of {n_images} images, calibration slope {slope:g}: covers"
    figures = {
        f"interval of the ICI, {what}": np.mean(covers),
        f"band of the calibration curve, {what}": np.mean(inside),
    }
    return [_row(name, float(share)) for name, share in figures.items()]


def _row(what: str, share: float) -> Measurement:
    outside = "" if 0.93 <= share <= 0.97 else " OUTSIDE"
    return Measurement(what, f"{share:.1%}{outside}", "93 to 97%", {"covers": share})


def heterogeneity_alarms(_: Path) -> list[Measurement]:
    """Equal subgroups: how often a test, or the smallest corrected p of an attribute's three tests, is below 0.05."""
    return [_alarms_cell(*cell) for cell in product((2, 4), (120, 300), (1, IMAGES_A_PATIENT))]


def _alarms_cell(n_sites: int, n_patients: int, n_images: int) -> Measurement:
    rng, distance = np.random.default_rng(0), _distance(0.85)
    patients = np.repeat(np.arange(n_patients), n_images)
    area, family = [], []
    for _ in range(N_ALARMS if n_images == 1 else N_ALARMS // 2):
        y_true = (rng.random(n_patients) < 0.4).astype(np.int64)[patients]
        sites = [f"{site}" for site in rng.integers(0, n_sites, n_patients)[patients]]
        noise = np.sqrt(SHARED_VARIANCE) * rng.normal(size=n_patients)[patients]
        noise += np.sqrt(1 - SHARED_VARIANCE) * rng.normal(size=len(patients))
        p = expit(distance * (noise + distance * (y_true - 0.5)))
        two, attributes, groups = np.column_stack([1 - p, p]), {"site": sites}, patients if n_images > 1 else None
        scored = score_subgroups(y_true, two, attributes, threshold=0.5, groups=groups)
        found = heterogeneity(SubgroupSample(y_true, two, attributes, 0.5, groups, scored))
        tested = [one for one in found if one.p is not None and one.p_holm is not None]
        area.append(any(one.p is not None and one.p < 0.05 for one in tested if one.figure == "roc_auc"))
        family.append(any(one.p_holm is not None and one.p_holm < 0.05 for one in tested))
    figures = {"area": float(np.mean(area)), "family": float(np.mean(family))}
    measured = f"{figures['area']:.1%}; any of three figures, corrected: {figures['family']:.1%}"
    what = f"{n_sites} equal subgroups, {n_patients} patients of {n_images} images: the ROC AUC is said to differ"
    return Measurement(what, measured, "5%", figures)


def area_rule(_: Path) -> list[Measurement]:
    """Which interval the ROC AUC of independent images gets; positives as varied as negatives, or twice as much."""
    return [_rule_cell(*cell) for cell in product(CLASS_SIZES, (0.7, 0.85, 0.93, 0.97), (1.0, 2.0))]


def _rule_cell(sizes: tuple[int, int], auc: float, deviation: float) -> Measurement:
    rng = np.random.default_rng(3)
    n_pos, n = sizes[0], sum(sizes)
    y_true = (np.arange(n) < n_pos).astype(np.int64)
    spread, distance = np.where(y_true == 1, deviation, 1.0), norm.ppf(auc) * np.sqrt(1 + deviation**2)
    found: dict[str, list[tuple[float, float]]] = {"used": [], "DeLong": [], "Newcombe": []}
    for _ in range(N_FIGURES):
        score = rng.normal(size=n) * spread + distance * y_true
        two = np.column_stack([-score, score])
        used = area(Estimate(roc_auc(y_true, score), None, None), y_true, two, None)
        assert used.interval is not None
        found["used"].append(used.interval)
        found["DeLong"].append(delong_ci(y_true, score))
        found["Newcombe"].append(newcombe_ci(y_true, score))
    what = f"interval of {n_pos} against {n - n_pos}, deviation {deviation:g}, AUC {auc}: covers"
    return coverage(what, found, auc)


def temperature_prior(_: Path) -> list[Measurement]:
    """How much worse a fitted temperature makes the log loss of new samples than the true one, by the prior's strength.

    Scores of two classes whose log-odds are multiplied by the true temperature.
    """
    found = {n: np.mean([_losses(n, t) for t in TEMPERATURES], axis=0) for n in N_FOR_TEMPERATURE}
    rows = []
    for n, losses in found.items():
        figures = dict(zip(("T = 1", *(f"prior {one:g}" for one in PRIORS), "used"), losses.tolist(), strict=True))
        measured = ", ".join(f"{name} {loss:.4f}" for name, loss in figures.items())
        rows.append(Measurement(f"temperature, n = {n}: added log loss", measured, "used: below T = 1", figures))
    return rows


def _losses(n: int, temperature: float) -> Floats:
    """Return the added loss of no temperature, of each prior alone, and of what `fit_temperature` returns."""
    rng = np.random.default_rng(0)
    distance = _distance(0.9)

    def drawn(n: int) -> tuple[Ints, Floats]:
        y_true = (np.arange(n) < n / 2).astype(np.int64)
        return y_true, temperature * distance * (rng.normal(size=n) + distance * (y_true - 0.5))

    y_new, new = drawn(20_000)

    def added(found: float) -> float:
        def loss(t: float) -> float:
            return float(np.logaddexp(0, np.where(y_new == 1, -new, new) / t).mean())

        return loss(found) - loss(temperature)

    total = np.zeros(len(PRIORS) + 2)
    for _ in range(N_TEMPERATURES):
        y_true, logit = drawn(n)
        p = 1 / (1 + np.exp(-logit))
        fit = fit_temperature(y_true, np.column_stack([1 - p, p]))
        total += [added(t) for t in (1.0, *(_by_prior(y_true, logit, one) for one in PRIORS), fit.temperature)]
    return total / N_TEMPERATURES


def _by_prior(y_true: Ints, logit: Floats, deviation: float) -> float:
    signed = np.where(y_true == 1, -logit, logit)

    def penalised(x: float) -> float:
        return float(np.logaddexp(0, signed * np.exp(-x)).sum() + (x / deviation) ** 2 / 2)

    return float(np.exp(minimize_scalar(penalised, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _distance(auc: float) -> float:
    """Return how far apart the means of two unit normals are whose scores have this AUC."""
    return float(np.sqrt(2) * norm.ppf(auc))


def coverage(what: str, found: dict[str, list[tuple[float, float]]], auc: float) -> Measurement:
    """Count covering intervals, and those that lie above or below; of the first method in words."""
    figures = {}
    for method, intervals in found.items():
        low, high = np.array(intervals).T
        figures[f"{method} covers"] = float(((low <= auc) & (auc <= high)).mean())
        figures[f"{method} above"] = float((low > auc).mean())
        figures[f"{method} below"] = float((high < auc).mean())
    first, *others = found
    measured = f"{figures[f'{first} covers']:.1%} (too high {figures[f'{first} above']:.1%}, too low "
    measured += f"{figures[f'{first} below']:.1%})"
    if not 0.93 <= figures[f"{first} covers"] <= 0.97:
        measured += " OUTSIDE"
    measured += "".join(f"; {method} {figures[f'{method} covers']:.1%}" for method in others)
    return Measurement(what, measured, "93 to 97%", figures)


def delong_speed(_: Path) -> list[Measurement]:
    y_true, y_score = _some_scores(N_SCORES)
    seconds = _fastest(lambda: delong_ci(y_true, y_score))
    return [Measurement(f"DeLong's interval of {N_SCORES:,} scores", f"{seconds:.2f} s", "1 s", {"seconds": seconds})]


def bootstrap_speed(_: Path) -> list[Measurement]:
    y_true, y_score = _some_scores(N_BOOTSTRAPPED)
    probabilities = np.column_stack([-y_score, y_score])
    seconds = _fastest(lambda: bootstrap_auc_ci(y_true, probabilities, np.arange(N_BOOTSTRAPPED)))
    what = f"bootstrap of 2,000 draws on {N_BOOTSTRAPPED:,} scores of as many patients"
    return [Measurement(what, f"{seconds:.2f} s", "5 s", {"seconds": seconds})]


def leakage_gate(_: Path) -> list[Measurement]:
    """Between splits where patients are known; among all images, for groups, where they are not."""
    return [_gate(is_grouped) for is_grouped in (False, True)]


def _gate(is_grouped: bool) -> Measurement:
    """In a process of its own, so that the peak is the gate's: the embeddings themselves are in it."""
    code = _GATE.format(n=N_EMBEDDINGS, grouped=is_grouped)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak_mib = json.loads(done.stdout)
    what = f"leakage gate on {N_EMBEDDINGS:,} x 512, {'near-duplicates grouped' if is_grouped else '70/10/20'}"
    measured = f"{seconds:.1f} s, peak {peak_mib * 1.048576:,.0f} MB"
    return Measurement(what, measured, "30 s, 1,000 MB", {"seconds": seconds, "peak_mib": peak_mib})


def _some_scores(n: int) -> tuple[Ints, Floats]:
    rng = np.random.default_rng(0)
    y_true = (rng.random(n) < 0.3).astype(np.int64)
    return y_true, rng.normal(size=n) + y_true


def _fastest(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


MEASUREMENTS = {
    "delong_coverage": delong_coverage,
    "clustered_coverage": clustered_coverage,
    "figures_coverage": figures_coverage,
    "curve_coverage": curve_coverage,
    "heterogeneity_alarms": heterogeneity_alarms,
    "area_rule": area_rule,
    "temperature_prior": temperature_prior,
    "delong_speed": delong_speed,
    "bootstrap_speed": bootstrap_speed,
    "leakage_gate": leakage_gate,
}
