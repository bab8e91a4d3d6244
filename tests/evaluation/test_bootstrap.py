"""The bootstrap over patients: its weighted AUC against repeated rows, its interval against a slow one."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import hoarfrost.evaluation.bootstrap
from hoarfrost.evaluation import (
    bootstrap_auc_ci,
    bootstrap_ci,
    bootstrap_share_ci,
    delong_ci,
    macro_auc_ci,
    per_patient,
)
from hoarfrost.evaluation.bootstrap import _of_few_patients, drawn_values, weighted_auc
from tests.support.samples import Floats, Ints, Sample, drawn_probabilities, pair_values, samples, two_columns


def clustered(n_patients: int, per: int, seed: int, distance: float = 1.5) -> tuple[Ints, Floats, Ints]:
    """Draw patients with so many images each, whose scores have most in common."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_patients) % 2
    patients = np.repeat(np.arange(n_patients), per)
    score = distance * y[patients] + rng.normal(size=n_patients)[patients] + 0.5 * rng.normal(size=n_patients * per)
    return y[patients], 1 / (1 + np.exp(-score)), patients


# -- against slow, obvious versions -------------------------------------------------------------------------------------


@given(samples(), st.data())
def test_weighted_auc_is_that_of_repeated_samples(sample: Sample, data: st.DataObject) -> None:
    y_true, y_score = sample
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(y_true), max_size=len(y_true)))
    area = weighted_auc(y_true == 1, y_score)(np.array([times, [1] * len(times)], float))
    repeated = np.repeat(y_true, times), np.repeat(y_score, times)
    if len(set(repeated[0].tolist())) < 2:
        assert np.isnan(area[0])
    else:
        assert area[0] == pytest.approx(pair_values(*repeated).mean(), abs=1e-12)
    assert area[1] == pytest.approx(pair_values(y_true, y_score).mean(), abs=1e-12)


@given(samples(fewest=2), st.data(), st.sampled_from(["mean", "max"]))
def test_each_patient_becomes_the_mean_or_maximum_of_its_images(sample: Sample, data: st.DataObject, how: str) -> None:
    y_true, p = sample
    groups = np.array(data.draw(st.lists(st.integers(3, 9), min_size=len(p), max_size=len(p))))
    found = per_patient(y_true, two_columns(p), groups, how)
    assert found.groups.tolist() == sorted(set(groups.tolist()))
    for i, patient in enumerate(found.groups):
        own = p[groups == patient]
        assert found.probabilities[i, 1] == pytest.approx(own.mean() if how == "mean" else own.max(), abs=1e-12)
        assert found.y_true[i] == y_true[groups == patient].max()
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(len(found.groups)))


def test_patients_images_are_joined_by_their_mean_unless_said_otherwise() -> None:
    y_true, p = np.array([0, 0, 1]), np.array([0.1, 0.3, 0.9])
    found = per_patient(y_true, two_columns(p), np.array([5, 5, 2]))
    assert found.probabilities[:, 1] == pytest.approx([0.9, 0.2])


def test_maximum_over_images_of_three_classes_sums_to_one() -> None:
    _, probabilities = drawn_probabilities(12, 3, seed=0)
    found = per_patient(np.repeat([0, 1, 2], 4), probabilities, np.repeat([0, 1, 2], 4), "max")
    highest = probabilities.reshape(3, 4, 3).max(axis=1)
    assert found.probabilities == pytest.approx(highest / highest.sum(axis=1, keepdims=True))


def slow_bca(y_true: Ints, p: Floats, patients: Ints, n_draws: int) -> list[float]:
    """Return Efron's interval as in his book: patients are drawn one by one, and omitted one by one."""
    rng = np.random.default_rng(1)
    names = np.unique(patients)

    def area(chosen: Ints) -> float:
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in chosen])
        return float(pair_values(y_true[rows], p[rows]).mean())

    draws = np.array([area(rng.choice(names, len(names))) for _ in range(n_draws)])
    left_out = np.array([area(names[names != patient]) for patient in names])
    influence = left_out.mean() - left_out
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias = norm.ppf((draws < area(names)).mean())
    z = bias + norm.ppf([0.025, 0.975])
    return [float(x) for x in np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z)))]


def test_interval_agrees_with_efrons_over_patients_drawn_one_by_one() -> None:
    y_true, p, patients = clustered(80, 3, seed=0)
    low, high = slow_bca(y_true, p, patients, 1000)
    found = bootstrap_auc_ci(y_true, two_columns(p), patients)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


class Recorded:
    """A statistic that records the weights it gets."""

    def __init__(self, statistic: Callable[[Floats], Floats]) -> None:
        self.statistic = statistic
        self.weights: list[Floats] = []

    def __call__(self, weights: Floats) -> Floats:
        self.weights.extend(weights)
        return self.statistic(weights)


def bca_of(recorded: Recorded, patients: Ints, n_draws: int, level: float) -> tuple[float, float]:
    """Compute Efron's interval from the recorded weights: all patients, the draws, and all but one patient."""
    names = sorted(set(patients.tolist()))
    everything, draws, left_out = np.split(np.array(recorded.weights), [1, 1 + n_draws])
    assert (everything == 1).all()
    times = np.array([[draw[patients == name] for name in names] for draw in draws])  # (draws, patients, images each)
    assert (times == times[:, :, :1]).all()
    assert (times[:, :, 0].sum(axis=1) == len(names)).all()
    assert len({tuple(draw) for draw in draws}) > 0.9 * n_draws
    missing = [tuple(np.unique(patients[weights == 0])) for weights in left_out]
    assert sorted(missing) == [(name,) for name in names]
    assert {weight for weights in left_out for weight in weights} == {0, 1}

    estimate, values = float(recorded.statistic(everything)[0]), recorded.statistic(draws)
    jackknife = recorded.statistic(left_out)
    influence = [jackknife.mean() - value for value in jackknife]
    squares, cubes = sum(d * d for d in influence), sum(d * d * d for d in influence)
    acceleration = cubes / (6 * squares * squares**0.5) if squares else 0.0
    below = sum(1.0 if value < estimate else 0.5 if value == estimate else 0.0 for value in values) / n_draws
    bias = norm.ppf(min(max(below, 0.5 / n_draws), 1 - 0.5 / n_draws))
    ends = [bias + norm.ppf(share) for share in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (np.quantile(values, norm.cdf(bias + z / (1 - acceleration * z))) for z in ends)
    return min(low, estimate), max(high, estimate)


def skewed_counts(weights: Floats) -> Floats:
    """Return the weighted mean of a few counts, one of which is far from the others: draws often equal the estimate."""
    found: Floats = weights @ np.repeat([0, 0, 1, 1, 2, 2, 3, 3, 12], 2) / weights.sum(axis=1)
    return found


def never_again(offset: float) -> Callable[[Floats], Floats]:
    """Return a statistic whose draws are all on one side of the estimate."""
    return lambda weights: np.where((weights == 1).all(axis=1), 0.0, offset + skewed_counts(weights) / 100)


@pytest.mark.parametrize(
    "statistic", [skewed_counts, lambda weights: -skewed_counts(weights), never_again(5), never_again(-5)],
    ids=["skewed", "skewed to the other side", "all above", "all below"],
)  # fmt: skip
@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("bytes_at_a_time", [1, 7 * 8 * 18, 1 << 24])
def test_interval_is_efrons_of_the_very_draws(
    statistic: Callable[[Floats], Floats], level: float, bytes_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hoarfrost.evaluation.bootstrap, "_BLOCK_BYTES", bytes_at_a_time)
    recorded, patients = Recorded(statistic), np.repeat(np.arange(9), 2)
    found = bootstrap_ci(recorded, patients, level=level, n_draws=200, seed=3)
    assert (found.low, found.high) == pytest.approx(bca_of(recorded, patients, 200, level), abs=1e-9)


def test_of_many_patients_blocks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.evaluation.bootstrap, "_MOST_JACKKNIFED", 3)
    recorded = Recorded(skewed_counts)
    bootstrap_ci(recorded, np.repeat(np.arange(9), 2), n_draws=20)
    left_out = np.array(recorded.weights[21:])
    assert left_out.shape == (3, 18)
    assert (left_out.sum(axis=0) == 2).all()
    assert (left_out.sum(axis=1) == 12).all()


def test_statistic_without_a_jackknife_has_no_acceleration() -> None:
    """Without any one patient the statistic is undefined: the interval is only corrected for bias."""
    share = np.array([1.0, 2, 3, 4, 5, 6])

    def statistic(weights: Floats) -> Floats:
        is_jackknife = (weights.max(axis=1) == 1) & (weights.min(axis=1) == 0)
        return np.where(is_jackknife, np.nan, weights @ share / weights.sum(axis=1))

    recorded = Recorded(statistic)
    found = bootstrap_ci(recorded, np.arange(6), n_draws=100)
    values = np.array([weights @ share / 6 for weights in recorded.weights[1:101]])
    bias = norm.ppf(((values < 3.5).sum() + (values == 3.5).sum() / 2) / 100)
    low, high = np.quantile(values, norm.cdf(2 * bias + norm.ppf([0.025, 0.975])))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_level_seed_and_draws_reach_the_interval_of_areas_and_shares() -> None:
    y_true, p, patients = clustered(40, 2, seed=6)
    called = (p > 0.4).astype(int)
    for give in (
        lambda **options: bootstrap_auc_ci(y_true, two_columns(p), patients, **options),
        lambda **options: bootstrap_share_ci(y_true, called, patients, **options),
    ):
        wide, narrow = give(), give(level=0.5)
        assert wide.low < narrow.low < narrow.high < wide.high
        assert give(seed=0) == wide != give(seed=1)
        assert (wide.n_draws, give(n_draws=50).n_draws) == (2000, 50)


def test_areas_of_labels_that_some_images_lack_are_of_those_that_have_them() -> None:
    y_true = np.array([[1, 0], [0, 1], [1, -1], [0, -1], [1, 1], [0, 0], [1, 0], [0, 1]])
    p = np.array([[0.9, 0.2], [0.1, 0.8], [0.4, 0.5], [0.6, 0.1], [0.7, 0.3], [0.2, 0.4], [0.8, 0.6], [0.3, 0.9]])
    recorded: list[Floats] = []
    plain = hoarfrost.evaluation.bootstrap.bootstrap_ci

    def asked(statistic: Callable[[Floats], Floats], *rest: object, **options: object) -> object:
        recorded.append(statistic(np.ones((1, 8))))
        return plain(statistic, *rest, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hoarfrost.evaluation.bootstrap, "bootstrap_ci", asked)
        bootstrap_auc_ci(y_true, p, np.arange(8), n_draws=50)
    known = y_true[:, 1] >= 0
    expected = (pair_values(y_true[:, 0], p[:, 0]).mean() + pair_values(y_true[known, 1], p[known, 1]).mean()) / 2
    assert recorded[0][0] == pytest.approx(expected, abs=1e-12)


def test_two_patients_are_enough() -> None:
    found = bootstrap_ci(lambda weights: weights @ [1.0, 3.0] / weights.sum(axis=1), np.array([0, 1]), n_draws=100)
    assert (found.low, found.high, found.n_patients) == (1, 3, 2)


def test_half_of_the_draws_may_be_undefined_and_no_more() -> None:
    """A draw of two patients is of both in half of the cases."""

    def both_or_nothing(weights: Floats) -> Floats:
        kept = iter(range(len(weights)))
        return np.array([np.nan if len(weights) > 2 and next(kept) % 2 else 0.5 for _ in weights])

    assert bootstrap_ci(both_or_nothing, np.arange(3), n_draws=100).n_undefined == 50


def test_patients_with_one_image_each_have_nearly_delongs_interval() -> None:
    y_true, p, patients = clustered(600, 1, seed=2)
    low, high = delong_ci(y_true, p)
    found = bootstrap_auc_ci(y_true, two_columns(p), patients)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_macro_interval_of_three_classes_has_nearly_the_analytic_width() -> None:
    y_true, probabilities = drawn_probabilities(500, 3, seed=1)
    low, high = macro_auc_ci(y_true, probabilities)
    found = bootstrap_auc_ci(y_true, probabilities, np.arange(500))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


# -- what it is for -----------------------------------------------------------------------------------------------------


def test_copies_of_an_image_do_not_narrow_the_interval_as_they_do_delongs() -> None:
    y_true, p, patients = clustered(60, 1, seed=3)
    once = bootstrap_auc_ci(y_true, two_columns(p), patients)
    y5, p5, patients5 = np.repeat(y_true, 5), np.repeat(p, 5), np.repeat(patients, 5)
    copied = bootstrap_auc_ci(y5, two_columns(p5), patients5)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-12)
    low, high = delong_ci(y5, p5)
    assert high - low < 0.6 * (copied.high - copied.low)


def test_same_seed_gives_the_same_interval_and_another_nearly_so() -> None:
    y_true, p, patients = clustered(60, 2, seed=4)
    first, again, other = (bootstrap_auc_ci(y_true, two_columns(p), patients, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.02)


def test_order_and_names_of_patients_change_no_estimate_of_the_interval() -> None:
    y_true, p, patients = clustered(60, 2, seed=5)
    first = bootstrap_auc_ci(y_true, two_columns(p), patients)
    order = np.random.default_rng(0).permutation(len(p))
    moved = bootstrap_auc_ci(y_true[order], two_columns(p[order]), patients[order] * 7 - 100)
    assert (moved.low, moved.high) == pytest.approx((first.low, first.high), abs=1e-9)


def test_draws_that_lack_a_class_are_counted_and_left_out() -> None:
    y_true = np.array([1] * 2 + [0] * 20)
    found = bootstrap_auc_ci(y_true, two_columns(np.linspace(0.9, 0.1, 22)), np.arange(22), n_draws=500)
    expected = 500 * (20 / 22) ** 22  # no draw is of a positive patient
    assert found.n_undefined == pytest.approx(expected, abs=4 * expected**0.5)
    assert (found.n_patients, found.n_draws) == (22, 500)


def test_share_by_patients_is_wider_where_a_patients_images_agree() -> None:
    hits = np.repeat(np.random.default_rng(0).random(50) < 0.8, 4).astype(int)
    counted = np.ones(200, int)
    by_patient = bootstrap_share_ci(hits, counted, np.repeat(np.arange(50), 4))
    by_image = bootstrap_share_ci(hits, counted, np.arange(200))
    assert by_patient.low < by_image.low < hits.mean() < by_image.high < by_patient.high


# -- what is undefined is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y_true", "p", "groups", "message"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], [0, 1, 2], "two patients of each class; class 1 has 0"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 2], "two patients of each class; class 1 has 1"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 2], "two patients of each class; class 0 has 1"),
        ([0, 0, 1, 1], [0.1, np.nan, 0.3, 0.4], [0, 1, 2, 3], "some probabilities are NaN or infinite"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 2], r"groups has the shape \(3,\); there are 4 samples"),
        ([0, 0, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3], "3 labels of 2 classes"),
    ],
)
def test_bootstrap_refuses_what_is_undefined(
    y_true: list[int], p: list[float], groups: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_auc_ci(np.array(y_true), two_columns(np.array(p)), np.array(groups))


def test_class_of_three_that_one_patient_has_is_named_by_its_number() -> None:
    _, probabilities = drawn_probabilities(6, 3, seed=0)
    with pytest.raises(ValueError, match="two patients of each class; class 2 has 1"):
        bootstrap_auc_ci(np.array([0, 0, 1, 1, 2, 2]), probabilities, np.array([0, 1, 2, 3, 4, 4]))


def test_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no sample is counted$"):
        bootstrap_share_ci(np.zeros(4, int), np.zeros(4, int), np.arange(4))


def test_hits_of_other_samples_than_are_counted_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hits has the shape \(4,\), counted \(3,\)"):
        bootstrap_share_ci(np.zeros(4, int), np.ones(3, int), np.arange(4))


def test_statistic_that_is_undefined_for_all_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the statistic is undefined for these samples$"):
        bootstrap_ci(lambda weights: np.full(len(weights), np.nan), np.arange(5))


def test_statistic_that_most_draws_lack_is_refused() -> None:
    with pytest.raises(ValueError, match="the statistic is undefined in .* draws of patients: too few patients"):
        bootstrap_ci(lambda weights: np.where((weights == 1).all(axis=1), 0.5, np.nan), np.arange(5))


def test_single_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two patients; there are 1"):
        bootstrap_ci(lambda weights: weights.mean(axis=1), np.zeros(5, int))


def test_patient_of_two_classes_has_none_where_there_are_three() -> None:
    _, probabilities = drawn_probabilities(4, 3, seed=0)
    with pytest.raises(ValueError, match=r"images of different classes \(1; first: group 7, classes 0 and 2"):
        per_patient(np.array([0, 2, 1, 1]), probabilities, np.array([7, 7, 3, 3]))


def test_unknown_way_of_joining_images_is_refused() -> None:
    with pytest.raises(ValueError, match="how must be 'mean' or 'max', not 'median'"):
        per_patient(np.array([0, 1]), two_columns(np.array([0.1, 0.9])), np.array([0, 1]), "median")


def test_patients_are_drawn_alike_however_draws_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic, patients = (lambda weights: weights @ np.arange(60.0)), np.arange(60)
    together = drawn_values(statistic, patients, 60, 40, 7)
    _of_few_patients.cache_clear()
    monkeypatch.setattr(hoarfrost.evaluation.bootstrap, "_COUNTED_ALONE", 1)
    assert drawn_values(statistic, patients, 60, 40, 7).tolist() == together.tolist()
