from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import isotonic_regression
from scipy.stats import norm

from lab import stats

DOSES = [0, 1, 2, 4, 8, 16, 32]
scores_01 = st.floats(0, 1, allow_nan=False)
binary = st.sampled_from([0.0, 1.0])


def block(share: float, seeds: int = 3, prompts: int = 40) -> np.ndarray:
    """The first `share` of the prompts score 1, for every seed."""
    return np.tile((np.arange(prompts) < round(share * prompts)).astype(float), (seeds, 1))


def ladder(*shares: float, seeds: int = 3, prompts: int = 40) -> list[np.ndarray]:
    return [block(share, 1 if i == 0 else seeds, prompts) for i, share in enumerate(shares)]


# Wilson


def test_wilson_solves_its_quadratic() -> None:
    """Both limits p satisfy |mean - p| = z sqrt(p(1-p)/n), the definition of the score interval."""
    interval, z = stats.wilson(0.3, 50), norm.ppf(0.975)
    for limit in (interval.low, interval.high):
        assert abs(0.3 - limit) == pytest.approx(z * math.sqrt(limit * (1 - limit) / 50))


def test_wilson_at_the_ends_is_z2_over_n_plus_z2() -> None:
    z2 = norm.ppf(0.975) ** 2
    assert stats.wilson(0.0, 100).low == 0.0
    assert stats.wilson(0.0, 100).high == pytest.approx(z2 / (100 + z2))
    assert stats.wilson(1.0, 100).low == pytest.approx(100 / (100 + z2))
    assert stats.wilson(0.5, 0) == stats.Interval(0.0, 1.0)


@given(scores_01, st.integers(1, 2000), st.floats(0.5, 0.999))
def test_wilson_contains_the_mean_and_shrinks(mean: float, n: int, level: float) -> None:
    narrow, wide = stats.wilson(mean, 2 * n, level), stats.wilson(mean, n, level)
    assert 0 <= wide.low <= mean <= wide.high <= 1
    assert narrow.width < wide.width
    assert stats.wilson(1 - mean, n, level).low == pytest.approx(1 - wide.high, abs=1e-9)


@pytest.mark.parametrize(("mean", "n", "level"), [(1.1, 5, 0.95), (0.5, -1, 0.95), (0.5, 5, 1.0), (math.nan, 5, 0.9)])
def test_wilson_refuses_nonsense(mean: float, n: int, level: float) -> None:
    with pytest.raises(ValueError):
        stats.wilson(mean, n, level)


@given(arrays(float, st.integers(1, 40), elements=st.one_of(scores_01, st.just(math.nan))))
def test_bounds_contain_the_mean_and_widen_with_unscored(scores: np.ndarray) -> None:
    bounds = stats.bounds(scores)
    assert bounds is not None
    assert bounds.width == pytest.approx(np.isnan(scores).mean())
    if not np.isnan(scores).all():
        assert bounds.low - 1e-9 <= np.nanmean(scores) <= bounds.high + 1e-9
    assert stats.bounds([]) is None


# Paired


def table(both: int, only_tuned: int, only_base: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    tuned = np.repeat([1.0, 1.0, 0.0, 0.0], [both, only_tuned, only_base, neither])
    base = np.repeat([1.0, 0.0, 1.0, 0.0], [both, only_tuned, only_base, neither])
    return base, tuned


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((1, 1, 7, 12), -0.507, -0.026)],
    ids=["Newcombe 1998", "Bentur 2009 in Fagerland 2017"],
)
def test_newcombe_matches_published_limits(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    found = stats.paired_difference(*table(*cells))
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))
    assert (found.n, found.method) == (sum(cells), "newcombe paired")
    assert found.discordant == cells[1] + cells[2]


def test_pairing_is_narrower_than_independent_samples() -> None:
    found = stats.paired_difference(*table(90, 1, 6, 3))
    alone = stats.wilson(0.96, 100).width + stats.wilson(0.91, 100).width
    assert found.high - found.low < alone


def test_equal_binary_scores_still_have_an_interval() -> None:
    found = stats.paired_difference(*table(50, 0, 0, 0))
    assert found.mean == 0 and found.low < 0 < found.high


@given(st.lists(st.tuples(binary, binary), min_size=1, max_size=60), st.randoms())
def test_paired_binary_properties(pairs: list[tuple[float, float]], random: object) -> None:
    base, tuned = np.array(pairs).T
    found, swapped = stats.paired_difference(base, tuned), stats.paired_difference(tuned, base)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert swapped.low == pytest.approx(-found.high)
    order = np.argsort([random.random() for _ in pairs])  # type: ignore[attr-defined]
    again = stats.paired_difference(base[order], tuned[order])
    assert (again.low, again.high) == (pytest.approx(found.low), pytest.approx(found.high))


@given(st.lists(st.tuples(scores_01, scores_01), min_size=2, max_size=40))
def test_paired_fractional_properties(pairs: list[tuple[float, float]]) -> None:
    base, tuned = np.array(pairs).T
    found = stats.paired_difference(base, tuned)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert found.low < found.high


def test_constant_change_is_bounded_by_the_prompts_that_might_differ() -> None:
    base = np.full(100, 0.5)
    found = stats.paired_difference(base, base + 0.25)
    share = stats.wilson(0.0, 100).high
    assert found.method == "bound on discordant prompts"
    assert found.low == pytest.approx(0.25 - 1.25 * share)
    assert found.high == pytest.approx(0.25 + 0.75 * share)


def test_unscored_pairs_are_counted_and_left_out() -> None:
    found = stats.paired_difference([1, math.nan, 1, 0], [1, 1, math.nan, 1])
    assert (found.n, found.unscored, found.discordant, found.mean) == (2, 2, 1, 0.5)
    with pytest.raises(ValueError, match="no prompt"):
        stats.paired_difference([math.nan], [1])
    with pytest.raises(ValueError, match="shapes"):
        stats.paired_difference([1, 0], [1])


# Two-way


def test_two_way_closed_form() -> None:
    """2 seeds x 20 prompts, all of a prompt's answers equal: V_prompt is the whole variance."""
    scores = np.tile(np.repeat([0.0, 1.0], 10), (2, 1))
    prompt_variance = (20 / 19) * 20 * (2 * 0.5) ** 2 / 40**2
    cell_variance = (40 / 39) * 40 * 0.25 / 40**2
    variance = max(prompt_variance - cell_variance, prompt_variance)
    half = 12.7062047364 * math.sqrt(variance)
    found = stats.two_way(scores)
    assert (found.low, found.high) == (max(0, 0.5 - half), min(1, 0.5 + half))
    wider = stats.two_way(np.vstack([scores, scores, scores]))
    assert wider.high == pytest.approx(0.5 + 2.5705818366 * math.sqrt(20 / 19 * 20 * 0.25 / 400))


def test_two_way_at_zero_and_one_is_never_narrower_than_one_seeds_wilson() -> None:
    for value in (0.0, 1.0):
        assert stats.two_way(np.full((5, 60), value)) == stats.wilson(value, 60)
    almost = np.zeros((5, 60))
    almost[0, 0] = 1
    single = stats.wilson(almost.mean(), 60)
    found = stats.two_way(almost)
    assert found.low <= single.low and found.high >= single.high


def test_two_way_sees_the_spread_of_seeds() -> None:
    spread = np.vstack([block(share, 1, 100) for share in (0.2, 0.5, 0.8)])
    assert stats.two_way(spread).width > 3 * stats.wilson(0.5, 300).width


def test_clusters_widen() -> None:
    scores = np.repeat(np.random.default_rng(1).integers(0, 2, (5, 16)), 8, axis=1).astype(float)
    scores[1:] = scores[0]
    names = [f"entity {i // 8}" for i in range(128)]
    assert stats.two_way(scores, clusters=names).width > 1.5 * stats.two_way(scores).width
    one = scores[:1]
    assert stats.two_way(one, clusters=names) == stats.wilson(one.mean(), 16)
    assert stats.two_way(one, clusters=[""] * 128) == stats.wilson(one.mean(), 128)


def test_two_way_skips_unscored_and_falls_back_to_one_seed() -> None:
    scores = np.full((3, 20), math.nan)
    scores[1] = block(0.5, 1, 20)
    assert stats.two_way(scores) == stats.wilson(0.5, 20)
    with pytest.raises(ValueError, match="scored"):
        stats.two_way(np.full((2, 4), math.nan))
    with pytest.raises(ValueError, match="clusters"):
        stats.two_way(block(0.5), clusters=["a"])


@given(arrays(float, (3, 12), elements=st.one_of(scores_01, st.just(math.nan))), st.randoms())
def test_two_way_properties(scores: np.ndarray, random: object) -> None:
    if np.isnan(scores).all():
        return
    found = stats.two_way(scores)
    assert 0 <= found.low <= np.nanmean(scores) + 1e-9
    assert np.nanmean(scores) - 1e-9 <= found.high <= 1
    columns = np.argsort([random.random() for _ in range(12)])  # type: ignore[attr-defined]
    again = stats.two_way(scores[::-1][:, columns])
    assert (again.low, again.high) == (pytest.approx(found.low), pytest.approx(found.high))


# Isotonic fit and crossing


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 10)), elements=scores_01))
def test_isotonic_equals_scipy_and_falls(values: np.ndarray) -> None:
    fit = stats.isotonic(values)
    assert (np.diff(fit, axis=1) <= 1e-9).all()
    for row, fitted in zip(values, fit, strict=True):
        np.testing.assert_allclose(fitted, isotonic_regression(row, increasing=False).x, atol=1e-9)


def test_rises_are_listed_and_gaps_skipped() -> None:
    found = stats.rises([0, 1, 2, 4], [0.9, math.nan, 0.95, 0.2])
    assert [(rise.dose, rise.next_dose) for rise in found] == [(0, 2)]
    assert found[0].rise == pytest.approx(0.05)


def test_crossing_is_linear_in_log2_of_one_plus_dose() -> None:
    """From x = 1 (dose 1) at 1.0 to x = 2 (dose 3) at 0.0: the half lies at x = 1.5."""
    dose, before, after = stats.crossing([0, 1, 3], [1.0, 1.0, 0.0], 0.5) or (0, 0, 0)
    assert dose == pytest.approx(2**1.5 - 1)
    assert (before, after) == (1, 3)
    assert stats.crossing([0, 1, 3], [1.0, 1.0, 0.6], 0.5) is None
    assert stats.crossing([0, 1, 3], [1.0, math.nan, 0.0], 0.5) == (pytest.approx(1.0), 0, 3)


@given(st.lists(scores_01, min_size=2, max_size=8), scores_01)
def test_crossing_lies_between_its_rungs(means: list[float], level: float) -> None:
    doses = [0, *(2**i for i in range(len(means) - 1))]
    found = stats.crossing(doses, means, level)
    fit = stats.isotonic(means)
    assert (found is None) == bool((fit > level + 1e-9).all())
    if found is not None:
        dose, before, after = found
        assert before - 1e-9 <= dose <= after + 1e-9
        assert after == before or doses.index(int(after)) == doses.index(int(before)) + 1


def test_logistic_crossing_recovers_the_middle() -> None:
    x = np.log2(1 + np.array(DOSES))
    means = 0.1 + 0.8 / (1 + np.exp(3 * (x - 2.5)))
    assert stats.logistic_crossing(DOSES, means, 0.5) == pytest.approx(2**2.5 - 1, rel=1e-3)
    assert stats.logistic_crossing(DOSES, means, 0.05) is None
    assert stats.logistic_crossing([0, 1, 2], [1, 0.5, 0], 0.5) is None


# Dose to a drop, half-life


def test_half_life_on_a_cliff_spans_the_rungs() -> None:
    found = stats.half_life(DOSES, ladder(1, 1, 1, 0, 0, 0, 0, seeds=5))
    assert (found.status, found.low, found.high, found.provisional) == ("within", 2, 4, False)
    assert found.dose == pytest.approx(2 ** ((math.log2(3) + math.log2(5)) / 2) - 1)


def test_half_life_is_chance_corrected() -> None:
    shares = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0)
    plain, corrected = (stats.half_life(DOSES, ladder(*shares), floor) for floor in (0.0, 0.2))
    assert plain.dose is not None and corrected.dose is not None
    assert corrected.dose == pytest.approx(2.0)
    assert corrected.dose < plain.dose


def test_drop_of_exactly_ten_points_counts() -> None:
    found = stats.dose_to_drop(DOSES, ladder(1, 1, 0.9, 0.9, 0.9, 0.9, 0.9))
    assert found.dose == pytest.approx(2.0)
    assert found.provisional


def test_no_drop_is_beyond_and_says_so() -> None:
    flat = stats.dose_to_drop(DOSES, ladder(*[1.0] * 7))
    assert (flat.status, flat.dose, flat.low, flat.high) == ("beyond", None, None, None)
    near = stats.dose_to_drop(DOSES, ladder(1, 1, 1, 1, 1, 1, 0.925))
    assert near.status == "beyond"
    assert near.low is not None and near.low > 16
    assert near.high is None


def test_interval_of_a_late_crossing_reaches_beyond() -> None:
    found = stats.dose_to_drop(DOSES, ladder(1, 1, 1, 1, 1, 1, 0.875))
    assert (found.status, found.high) == ("within", None)
    assert found.low == 16


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (ladder(0.05, *[0.0] * 6), "above the floor"),
        ([np.full((1, 40), math.nan), *ladder(*[1.0] * 7)[1:]], "dose 0 has no scored"),
        ([block(1.0, 1), *[np.full((3, 40), math.nan)] * 6], "no trained dose"),
    ],
)
def test_undefined_has_a_reason(scores: list[np.ndarray], words: str) -> None:
    for found in (stats.half_life(DOSES, scores), stats.dose_to_drop(DOSES, scores)):
        assert found.status == "undefined" and words in (found.reason or "")
        assert (found.dose, found.low, found.high) == (None, None, None)


def test_ladder_without_dose_0_is_undefined_and_bad_ladders_are_refused() -> None:
    assert stats.half_life([1, 2], [block(1), block(0)]).reason == "dose 0 was not measured"
    assert stats.half_life([0], [block(1, 1)]).status == "undefined"
    with pytest.raises(ValueError, match="ascend"):
        stats.half_life([0, 4, 2], [block(1)] * 3)
    with pytest.raises(ValueError, match="rows"):
        stats.half_life([0, 1, 2], [block(1, 1), block(1, 2), block(1, 3)])


def noisy(seeds: int, prompts: int = 128, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    hardness = generator.normal(size=prompts)
    found = []
    for i in range(len(DOSES)):
        chance = 1 / (1 + np.exp(-(3 - i + hardness)))
        found.append((generator.random((1 if i == 0 else seeds, prompts)) < chance).astype(float))
    return found


def test_one_seed_is_provisional_and_gives_an_interval() -> None:
    found = stats.half_life(DOSES, noisy(1))
    assert found.provisional and found.low is not None and found.high is not None
    assert found.low < (found.dose or 0) < found.high


def test_same_seed_same_interval_and_prompt_order_does_not_move_the_point() -> None:
    scores = noisy(5)
    first = stats.dose_to_drop(DOSES, scores, seed=3)
    assert first == stats.dose_to_drop(DOSES, scores, seed=3)
    order = np.random.default_rng(1).permutation(128)
    moved = stats.dose_to_drop(DOSES, [block[:, order] for block in scores], seed=3)
    assert moved.dose == pytest.approx(first.dose)


def test_seeds_with_unequal_ladders_do_not_crash() -> None:
    scores = noisy(3)
    scores[3][1] = math.nan
    scores[5][0:2] = math.nan
    scores[6][:] = math.nan
    scores[2][2, :10] = math.nan
    found = stats.half_life(DOSES, scores)
    assert found.status == "within" and found.low is not None and found.low <= (found.dose or 0)


def test_a_seed_that_was_never_trained_is_not_counted() -> None:
    scores = [noisy(5)[0], *(np.vstack([block[:1], np.full((4, 128), math.nan)]) for block in noisy(5)[1:])]
    alone = [noisy(5)[0], *(block[:1] for block in noisy(5)[1:])]
    assert stats.half_life(DOSES, scores) == stats.half_life(DOSES, alone)


def test_clusters_widen_the_half_life() -> None:
    scores = [np.repeat(block[:, :16], 8, axis=1) for block in noisy(5)]
    names = [f"entity {i // 8}" for i in range(128)]
    plain, clustered = stats.half_life(DOSES, scores), stats.half_life(DOSES, scores, clusters=names)
    assert clustered.dose == pytest.approx(plain.dose)
    assert (clustered.high or 99) - (clustered.low or 0) > (plain.high or 99) - (plain.low or 0)


@settings(max_examples=30, deadline=None)
@given(arrays(float, (4, 2, 6), elements=st.one_of(scores_01, st.just(math.nan))))
def test_crossings_never_crash_and_contain_their_point(scores: np.ndarray) -> None:
    for found in (
        stats.half_life([0, 1, 2, 4], list(scores), resamples=50),
        stats.dose_to_drop([0, 1, 2, 4], list(scores), resamples=50),
    ):
        numbers = [number for number in (found.dose, found.low, found.high) if number is not None]
        assert all(math.isfinite(number) for number in numbers)
        assert numbers == [] if found.status == "undefined" else found.high is None or found.status == "within"
        if found.status == "within":
            assert found.dose is not None and found.low is not None
            assert found.low <= found.dose + 1e-9
            assert found.high is None or found.dose <= found.high + 1e-9


def test_bootstrap_of_a_full_ladder_takes_under_a_second() -> None:
    scores = noisy(5)
    start = time.process_time()
    stats.half_life(DOSES, scores, resamples=2000)
    assert time.process_time() - start < 1.0
