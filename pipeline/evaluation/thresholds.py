"""The results of many thresholds of patients with several images, with the intervals that one threshold gets."""

from dataclasses import replace

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints, checked_groups, normal_quantile
from hoarfrost.evaluation.estimates import Estimate, Share
from hoarfrost.evaluation.influence import of_ratio
from hoarfrost.evaluation.intervals import CLUSTERED, LINEARISED, IntervalKind, linearised
from hoarfrost.evaluation.operating import LOG_CLUSTERED, likelihood_ratio
from hoarfrost.evaluation.shares import over_patients, shares


def evaluate_thresholds(
    y_true: Ints, y_score: Floats, thresholds: Floats, groups: Ints, *, by_draws: bool = True
) -> dict[str, list[Estimate]]:
    """Return what `evaluate_threshold` has for several thresholds, by its names, all at once.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}, both present
    y_score : ndarray (n,) float64
    thresholds : ndarray (t,) float64
    groups : ndarray (n,) int64
        Patients, some with several samples.
    by_draws : bool
        False takes the delta method for all, which is faster with many patients.

    Returns
    -------
    dict of str -> list of Estimate, of length t
        "sensitivity", "specificity", "ppv", "npv", "lr_positive" and "lr_negative".
    """
    diseased = y_true == 1
    if not by_draws:
        return _by_patient_sums(y_score, thresholds, diseased, groups)
    found = y_score[:, None] >= thresholds  # (n, t)
    of_all = np.broadcast_to(diseased[:, None], found.shape)
    of = {
        "sensitivity": (found, of_all),
        "specificity": (~found, ~of_all),
        "ppv": (of_all, found),
        "npv": (~of_all, ~found),
    }
    ratios = {
        name: [likelihood_ratio(hits, diseased, groups, 0.95) for hits in columns.T]
        for name, columns in (("lr_positive", found), ("lr_negative", ~found))
    }
    return {**{name: list(shares(*columns, groups)) for name, columns in of.items()}, **ratios}


def _by_patient_sums(y_score: Floats, thresholds: Floats, diseased: Bools, groups: Ints) -> dict[str, list[Estimate]]:
    """Return the same by the delta method, from each patient's numbers of true and false positives."""
    numbers, n_patients = checked_groups(groups, len(groups))
    order, n_levels = np.argsort(thresholds, kind="stable"), len(thresholds) + 1
    levels = np.searchsorted(thresholds[order], y_score, "right")  # how many thresholds a sample reaches

    def reaching(samples: Bools) -> Floats:
        """Count each patient's samples that reach each threshold, (t + 1, patients); in the first row, all."""
        cells = levels[samples] * n_patients + numbers[samples]
        counts = np.bincount(cells, minlength=n_levels * n_patients).reshape(n_levels, n_patients)
        return np.cumsum(counts[::-1], axis=0, dtype=np.float64)[::-1]

    (sick, *true), (well, *false) = (reaching(samples) for samples in (diseased, ~diseased))
    places = np.argsort(order, kind="stable").tolist()  # of the thresholds as they are, in ascending order
    estimates: dict[str, list[Estimate]] = {}
    for tp, fp in ((true[place], false[place]) for place in places):
        of = {
            "sensitivity": (tp, sick), "specificity": (well - fp, well),
            "ppv": (tp, tp + fp), "npv": (well - fp, sick - tp + well - fp),
        }  # fmt: skip
        values = {name: _share(*two) for name, two in of.items()}
        values["lr_positive"] = _ratio((tp, sick), (fp, well))
        values["lr_negative"] = _ratio((sick - tp, sick), (well - fp, well))
        for name, value in values.items():
            estimates.setdefault(name, []).append(value)
    return estimates


def _share(hits: Floats, counted: Floats) -> Estimate:
    """Return a proportion from patients' sums; of 0 or 1, Wilson's interval from the number of patients."""
    n_hits, n = int(hits.sum()), int(counted.sum())
    plain = Share(n_hits / n if n else None, None, None, n=n, n_hits=n_hits, n_patients=int((counted > 0).sum()))
    found = linearised(plain, IntervalKind.SHARE, of_ratio(hits, counted).values, None)
    if found.interval is None:
        return over_patients(plain, None if n == 0 else (0.0, 0.0))
    return replace(found, method=f"{LINEARISED}, {CLUSTERED}")


def _ratio(*shares_of: tuple[Floats, Floats]) -> Estimate:
    """Return a likelihood ratio from patients' sums of the diseased and of the others, by the log method."""
    p = [float(hits.sum() / counted.sum()) for hits, counted in shares_of]
    if 0 in p or p == [1, 1]:
        # As if each patient had one sample: the share is the same for all of a class.
        sizes = [int((counted > 0).sum()) for _, counted in shares_of]
        hits = np.concatenate([np.arange(n) < round(one * n) for one, n in zip(p, sizes, strict=True)])
        return likelihood_ratio(hits, np.arange(len(hits)) < sizes[0], None, 0.95)
    first, second = (of_ratio(*two).values / one for two, one in zip(shares_of, p, strict=True))
    half = normal_quantile(0.95) * float(np.sqrt(((first - second) ** 2).sum()))
    value = p[0] / p[1]
    return Estimate(value, value * np.exp(-half), value * np.exp(half), LOG_CLUSTERED)
