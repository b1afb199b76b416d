"""Numbers as readers see them. Nothing is ever printed as NaN, and a fraction never as a percentage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.types import Crossing, Curve, Point


def percent(value: float | None) -> str:
    """0.953 -> `95.3 %`; None -> a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """Whole numbers with thin separators, others with three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}".replace(",", "\u202f") if value == int(value) else f"{value:.3g}"


def interval(point: Point | None) -> str:
    """`83 (71-91)`, in per cent, or a dash where nothing was measured."""
    if point is None or point.value is None:
        return "-"
    if point.low is None or point.high is None:
        return f"{100 * point.value:.0f}"
    return f"{100 * point.value:.0f} ({100 * point.low:.0f}-{100 * point.high:.0f})"


def steps(dose: float) -> str:
    """A dose in steps with as many digits as an interpolated one deserves."""
    return f"{dose:.1f}" if dose < 10 else f"{dose:.0f}"


def crossing(found: Crossing, reason: bool = True) -> str:
    """A dose with its interval, `beyond the ladder`, or `undefined` with its reason where there is room."""
    if found.status == "undefined" or (found.status == "within" and found.dose is None):
        return f"undefined: {found.reason}" if found.reason and reason else "undefined"
    if found.status == "beyond" or found.dose is None:
        above = "" if found.low is None else f" (not before {steps(found.low)})"
        return f"beyond the ladder{above}"
    low = "0" if found.low is None else steps(found.low)
    high = "beyond the ladder" if found.high is None else steps(found.high)
    return f"{steps(found.dose)} ({low} to {high})" + (", provisional" if found.provisional else "")


def verdict(curve: Curve) -> str:
    """One sentence that a policy reader can quote, from the numbers of one curve."""
    first, last = curve.points[0], curve.points[-1]
    what = f"{curve.recipe.replace('_', ' ')} with {curve.adapter}"
    if first.value is None or last.value is None:
        return f"Under {what}, the {curve.metric} could not be measured at both ends of the ladder."
    seeds = "a single run, so no claim about the recipe" if len(curve.seeds) == 1 else f"{len(curve.seeds)} seeds"
    sentence = (
        f"Under {what}, the {curve.metric} went from {percent(first.value)} to {percent(last.value)} "
        f"({percent(last.low)} to {percent(last.high)}; {seeds}, n = {last.n}) after {last.dose} steps."
    )
    drop = curve.dose_to_drop
    if drop.status == "within" and drop.dose is not None:
        sentence += f" Ten points were gone after {crossing(drop)} steps."
    elif drop.status == "beyond":
        sentence += " It never lost ten points within the ladder."
    return sentence
