"""Isotonic and logistic fits of a curve over x = log2(1 + dose), and where they reach a level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit
from scipy.special import expit

from lab.stats.intervals import Floats

REACHED = 1e-9
"""Slack for binary fractions: 1.0 - 0.9 is a drop of 0.10."""


@dataclass(frozen=True)
class Rise:
    """A mean that rises from one measured rung to the next: isotonic fitting hides it."""

    dose: float
    next_dose: float
    rise: float


def isotonic(values: ArrayLike) -> Floats:
    """Non-increasing least-squares fit along the last axis, every rung with equal weight; shape kept.

    Min-max formula (Barlow et al. 1972): the fit at k is the minimum over a <= k of the maximum over b >= k
    of the mean of a..b. Vectorised over leading axes, where scipy's fit takes one sequence at a time.
    """
    heights = np.asarray(values, dtype=np.float64)
    rungs = heights.shape[-1]
    total = np.concatenate([np.zeros((*heights.shape[:-1], 1)), np.cumsum(heights, axis=-1)], axis=-1)
    start, stop = np.arange(rungs)[:, None], np.arange(rungs)[None, :]
    length = stop - start + 1
    span = (total[..., None, 1:] - total[..., :-1, None]) / np.maximum(length, 1)
    span = np.where(length > 0, span, -np.inf)
    highest = np.maximum.accumulate(span[..., ::-1], axis=-1)[..., ::-1]
    return np.asarray(np.where(length > 0, highest, np.inf).min(axis=-2))


def rises(doses: ArrayLike, means: ArrayLike) -> tuple[Rise, ...]:
    """Every rise between neighbouring measured rungs; NaN means are skipped."""
    ladder, heights = np.asarray(doses, dtype=np.float64), np.asarray(means, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(heights))
    steps = [Rise(float(ladder[i]), float(ladder[j]), float(heights[j] - heights[i])) for i, j in pairwise(known)]
    return tuple(step for step in steps if step.rise > REACHED)


def crossing(doses: ArrayLike, means: ArrayLike, level: float) -> tuple[float, float, float] | None:
    """Dose where the isotonic fit of `means` first reaches `level`, and the two rungs around it.

    Linear in x = log2(1 + dose). None when the fit stays above `level` on the whole ladder. Means may be
    NaN: such rungs are left out. A curve that starts at or below `level` crosses at its first rung.
    """
    ladder, heights = np.asarray(doses, dtype=np.float64), np.asarray(means, dtype=np.float64)
    known = ~np.isnan(heights)
    ladder = ladder[known]
    if ladder.size == 0:
        return None
    x = np.log2(1 + ladder)
    fit = isotonic(heights[known])
    found = float(first_reach(x, fit[None, :], np.array([level]))[0])
    if math.isinf(found):
        return None
    after = int(np.argmax(fit <= level + REACHED))
    return float(2**found - 1), float(ladder[max(after - 1, 0)]), float(ladder[after])


def logistic_crossing(doses: ArrayLike, means: ArrayLike, level: float) -> float | None:
    """Dose where a falling four-parameter logistic over x = log2(1 + dose) reaches `level`.

    bottom + (top - bottom) / (1 + exp(slope * (x - middle))), by least squares. An option beside the
    isotonic fit, for curves known to be sigmoid: erosion need not be. None with fewer than four measured
    rungs, when the fit does not converge, or when it stays above `level` on the ladder.
    """
    ladder, heights = np.asarray(doses, dtype=np.float64), np.asarray(means, dtype=np.float64)
    known = ~np.isnan(heights)
    x, heights = np.log2(1 + ladder[known]), heights[known]
    if x.size < 4:
        return None

    def curve(at: Floats, top: float, bottom: float, slope: float, middle: float) -> Floats:
        return np.asarray(bottom + (top - bottom) * expit(-slope * (at - middle)))

    start = (float(heights.max()), float(heights.min()), 2.0, float(x.mean()))
    limits = ([0.0, 0.0, 0.0, float(x[0]) - 1], [1.0, 1.0, 50.0, float(x[-1]) + 1])
    try:
        (top, bottom, slope, middle), _ = curve_fit(curve, x, heights, p0=start, bounds=limits)
    except RuntimeError:
        return None
    if not bottom < level < top or slope <= 0:
        return None
    found = float(middle + math.log((top - level) / (level - bottom)) / slope)
    return float(2**found - 1) if 0.0 <= found <= float(x[-1]) else None


def first_reach(x: Floats, fit: Floats, target: Floats) -> Floats:
    """First x where each non-increasing row of `fit`, [rows, rungs], reaches `target`; inf where never."""
    reached = fit <= target[:, None] + REACHED
    after = reached.argmax(axis=1)
    before = np.maximum(after - 1, 0)
    rows = np.arange(fit.shape[0])
    top, bottom = fit[rows, before], fit[rows, after]
    share = np.divide(top - target, top - bottom, out=np.zeros_like(top), where=top > bottom)
    found = x[before] + np.clip(share, 0.0, 1.0) * (x[after] - x[before])
    return np.where(reached.any(axis=1), found, np.inf)
