"""Pure functions on numbers. Scores are float arrays in [0, 1]; NaN means unscored, never 0."""

from lab.stats.dose import MIN_RANGE, Scores, dose_to_drop, half_life
from lab.stats.fit import Rise, crossing, isotonic, logistic_crossing, rises
from lab.stats.intervals import Difference, Interval, bounds, paired_difference, two_way, wilson

__all__ = [
    "MIN_RANGE",
    "Difference",
    "Interval",
    "Rise",
    "Scores",
    "bounds",
    "crossing",
    "dose_to_drop",
    "half_life",
    "isotonic",
    "logistic_crossing",
    "paired_difference",
    "rises",
    "two_way",
    "wilson",
]
