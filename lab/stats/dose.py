"""Half-life and dose to a drop: crossing of the isotonic fit, two-way bootstrap, censoring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lab.stats.fit import REACHED, crossing, first_reach, isotonic
from lab.stats.intervals import Floats, check_level, group_index
from lab.types import Crossing

Scores = Sequence[NDArray[np.float64]]
"""One array [seeds, prompts] per dose, columns in the same prompt order. A single row is one measurement
that all seeds share (dose 0); otherwise rows are in the same seed order, a missing seed's row being NaN."""

FEW_SEEDS = 5
"""With fewer seeds a crossing's interval undercovers, so that it is provisional."""
MIN_RANGE = 0.1
"""Smallest m_0 - floor over which retention means anything."""


def dose_to_drop(
    doses: Sequence[int],
    scores: Scores,
    drop: float = 0.10,
    *,
    floor: float = 0.0,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Crossing:
    """Dose at which the mean score has fallen by `drop` below its value at dose 0.

    The interval and the statuses are those of `half_life`; undefined when the score at dose 0 is less than
    `drop` above `floor`, since such a drop cannot be seen.
    """
    check_level(level)
    sample = _Sample.of(doses, scores, clusters)
    reason = _why_undefined(sample, floor, drop)
    if reason:
        return Crossing("undefined", reason=reason, provisional=sample.provisional)
    return _estimate(sample, 1.0, -drop, level, resamples, seed)


def half_life(
    doses: Sequence[int],
    scores: Scores,
    floor: float = 0.0,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Crossing:
    """Dose at which retention, (m_dose - floor) / (m_0 - floor), falls to one half.

    Point: on the isotonic fit of the means over all scored answers. Interval: percentile bootstrap over
    seeds and over prompts (or their clusters), the same draw at every dose and its own m_0 in every draw,
    joined with the two rungs around the point, so that a cliff never looks better located than it is.
    With one seed only prompts are drawn. `within`: the point crosses; high None means that the interval
    reaches beyond the ladder. `beyond`: it does not; low is the bootstrap's lower bound, None when that
    lies beyond the ladder too. `undefined`: m_0 - floor < 0.1, or nothing to cross, with the reason.
    Deterministic for a given `seed`.
    """
    check_level(level)
    sample = _Sample.of(doses, scores, clusters)
    reason = _why_undefined(sample, floor, MIN_RANGE)
    if reason:
        return Crossing("undefined", reason=reason, provisional=sample.provisional)
    return _estimate(sample, 0.5, 0.5 * floor, level, resamples, seed)


@dataclass(frozen=True)
class _Sample:
    """Scores summed per (dose, seed, cluster): all that resampling needs."""

    doses: Floats
    sums: Floats
    """[doses, seeds, clusters]"""
    counts: Floats
    """[doses, seeds, clusters], scored answers."""
    seeds: int
    """Seeds with a scored answer at a trained dose."""

    @classmethod
    def of(cls, doses: Sequence[int], scores: Scores, clusters: Sequence[str] | None) -> _Sample:
        if len(doses) != len(scores):
            raise ValueError(f"{len(doses)} doses but {len(scores)} score arrays")
        if list(doses) != sorted(set(doses)) or (doses and doses[0] < 0):
            raise ValueError(f"doses must ascend from 0 or above, got {list(doses)}")
        arrays = [np.asarray(block, dtype=np.float64) for block in scores]
        rows = max((block.shape[0] for block in arrays), default=1)
        prompts = arrays[0].shape[1] if arrays else 0
        if any(block.shape not in ((1, prompts), (rows, prompts)) for block in arrays):
            raise ValueError(f"scores need 1 or {rows} rows of {prompts} prompts at every dose")
        stack = np.array([np.broadcast_to(block, (rows, prompts)) for block in arrays])
        groups = group_index(prompts, clusters)
        member = (groups[:, None] == np.arange(int(groups.max(initial=-1)) + 1)[None, :]).astype(np.float64)
        scored = ~np.isnan(stack)
        trained = np.asarray(doses) > 0
        # A seed without any trained score is not drawn: it would only repeat the shared dose 0.
        kept = scored[trained].any(axis=(0, 2)) if trained.any() else np.zeros(rows, dtype=bool)
        if kept.any():
            stack, scored = stack[:, kept], scored[:, kept]
        sums, counts = np.where(scored, stack, 0.0) @ member, scored.astype(np.float64) @ member
        return cls(np.asarray(doses, dtype=np.float64), sums, counts, int(kept.sum()))

    @property
    def provisional(self) -> bool:
        return self.seeds < FEW_SEEDS

    def means(self, seed_weights: Floats, cluster_weights: Floats) -> Floats:
        """Weighted mean score per draw and dose, [draws, doses]; NaN where a draw holds no score."""

        def weigh(table: Floats) -> Floats:
            doses, seeds, clusters = table.shape
            rows = cluster_weights @ table.reshape(doses * seeds, clusters).T
            return np.asarray(np.einsum("rds,rs->rd", rows.reshape(-1, doses, seeds), seed_weights))

        total, count = weigh(self.sums), weigh(self.counts)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def point(self) -> Floats:
        """Mean score per dose over all scored answers."""
        _, seeds, clusters = self.sums.shape
        return np.asarray(self.means(np.ones((1, seeds)), np.ones((1, clusters)))[0])


def _why_undefined(sample: _Sample, floor: float, needed: float) -> str | None:
    if sample.doses.size == 0 or sample.doses[0] != 0:
        return "dose 0 was not measured"
    means = sample.point()
    if np.isnan(means[0]):
        return "dose 0 has no scored answer"
    if np.isnan(means[1:]).all():
        return "no trained dose has a scored answer"
    if means[0] - floor < needed - REACHED:
        return f"dose 0 scores {means[0]:.3f}, less than {needed:g} above the floor {floor:g}"
    return None


def _estimate(sample: _Sample, slope: float, intercept: float, level: float, resamples: int, seed: int) -> Crossing:
    """Crossing of the level slope * m_0 + intercept."""
    means = sample.point()
    found = crossing(sample.doses, means, slope * float(means[0]) + intercept)
    draws = np.sort(_bootstrap(sample, slope, intercept, resamples, seed))
    tail = (1 - level) / 2
    # Order statistics instead of interpolated quantiles, because some draws are infinite.
    low = float(draws[math.floor(tail * (draws.size - 1))])
    high = float(draws[math.ceil((1 - tail) * (draws.size - 1))])
    if found is None:
        return Crossing("beyond", low=_finite(low), provisional=sample.provisional)
    dose, before, after = found
    return Crossing("within", dose, min(low, before), _finite(max(high, after)), provisional=sample.provisional)


def _bootstrap(sample: _Sample, slope: float, intercept: float, resamples: int, seed: int) -> Floats:
    """Crossing dose of each draw, inf beyond the ladder; draws without a dose-0 score are left out."""
    _, seeds, clusters = sample.sums.shape
    means = sample.means(*_weights(seeds, clusters, resamples, seed))
    missing = np.isnan(means)
    x = np.log2(1 + sample.doses)
    doses = np.full(resamples, np.nan)
    # Ladders with holes give draws with holes: fit each pattern of holes on the rungs that it has.
    patterns = np.unique(missing, axis=0) if missing.any() else missing[:1]
    for pattern in patterns:
        if pattern[0]:
            continue
        rows = (missing == pattern).all(axis=1)
        heights = means[rows][:, ~pattern]
        target = slope * heights[:, 0] + intercept
        doses[rows] = 2 ** first_reach(x[~pattern], isotonic(heights), target) - 1
    return np.asarray(doses[~np.isnan(doses)])


@lru_cache(maxsize=4)
def _weights(seeds: int, clusters: int, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """How often each draw takes each seed and each cluster; the curves of a sweep share these draws."""
    generator = np.random.default_rng(seed)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.float64)
    of_clusters = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    return of_seeds, of_clusters.astype(np.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
