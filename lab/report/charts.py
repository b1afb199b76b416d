"""One chart specification per figure: the page, the SVG and the PNG are drawn from the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.types import Curve, Point

UNITS = {"steps": "optimizer steps", "examples": "examples", "tokens": "tokens", "flop": "training FLOP"}
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#999999", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours: told apart with every common colour vision."""
FONT = "system-ui, sans-serif"


@dataclass(frozen=True)
class Axis:
    """The dose axis in one unit: position is log2(1 + amount / first), so that dose 0 has a place."""

    unit: str
    first: float
    last: float

    def place(self, amount: float) -> float:
        """Position of an amount on the axis."""
        return math.log2(1 + amount / self.first)

    def altair(self, steps: Sequence[int]) -> alt.X:
        """The encoding: ticks at the rungs in steps, at doublings in other units, labelled in the unit."""
        ticks = [self.place(dose) for dose in steps] if self.unit == "steps" else _doublings(self.place(self.last))
        form = "d" if self.unit == "steps" else ".2~e" if self.unit == "flop" else ".2~s"
        label = f"format((pow(2, datum.value) - 1) * {self.first!r}, '{form}')"
        axis = alt.Axis(values=ticks, labelExpr=label, title=f"dose ({UNITS[self.unit]})", grid=False)
        return alt.X("x:Q", axis=axis, scale=alt.Scale(nice=False, zero=True))


def _doublings(last: float) -> list[float]:
    return [float(place) for place in range(math.ceil(last) + 1)]


def amount(point: Point, unit: str) -> float:
    """A point's dose in a unit."""
    return float(point.dose if unit == "steps" else getattr(point, unit))


def axis(curves: Sequence[Curve], unit: str) -> Axis:
    """The axis that fits all of these curves; `first` is the smallest dose above 0."""
    amounts = [amount(point, unit) for curve in curves for point in curve.points if amount(point, unit) > 0]
    if unit == "steps" or not amounts:
        return Axis(unit, 1.0, max(amounts, default=1.0))
    return Axis(unit, min(amounts), max(amounts))


def label(curve: Curve) -> str:
    """What a reader calls the curve: recipe, then adapter, defense and condition where they say something."""
    parts = [curve.recipe.replace("_", " "), curve.adapter]
    parts += [curve.defense] if curve.defense != "none" else []
    parts += [f"{curve.condition} prompt"] if curve.condition != "native" else []
    return ", ".join(parts)


def _rows(curves: Sequence[Curve], where: Axis) -> list[dict[str, Any]]:
    return [
        {
            "x": where.place(amount(point, where.unit)),
            "dose": point.dose,
            "value": point.value,
            "low": point.low,
            "high": point.high,
            "curve": label(curve),
            "recipe": curve.recipe,
            "adapter": curve.adapter,
            "n": point.n,
            "unscored": point.unscored,
        }
        for curve in curves
        for point in curve.points
        if point.value is not None
    ]


def chart(curves: Sequence[Curve], unit: str, recipes: Sequence[str], title: str, height: int = 320) -> alt.LayerChart:
    """Curves of one probe with their interval bands; colour is the recipe, dashes are the adapter."""
    where = axis(curves, unit)
    steps = sorted({point.dose for curve in curves for point in curve.points})
    colours = alt.Scale(domain=list(recipes), range=[PALETTE[i % len(PALETTE)] for i in range(len(recipes))])
    colour = alt.Color("recipe:N", scale=colours, title="recipe")
    floor = curves[0].floor
    base = alt.Chart(alt.Data(values=_rows(curves, where))).encode(x=where.altair(steps), detail="curve:N")
    limits = alt.Scale(domain=[0, 1])
    percent = alt.Axis(format="%", title=curves[0].metric)
    band = base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q", scale=limits, axis=percent), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2).encode(
        y=alt.Y("value:Q", scale=limits, axis=percent),
        color=colour,
        strokeDash=alt.StrokeDash("adapter:N", title="adapter"),
    )
    dots = base.mark_point(filled=True, size=46, opacity=1).encode(
        y="value:Q",
        color=colour,
        shape=alt.Shape("adapter:N", legend=None),
        tooltip=[
            alt.Tooltip("curve:N"),
            alt.Tooltip("dose:Q", title="steps"),
            alt.Tooltip("value:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%"),
            alt.Tooltip("high:Q", format=".1%"),
            alt.Tooltip("n:Q"),
            alt.Tooltip("unscored:Q"),
        ],
    )
    layers: list[Any] = [band, line, dots]
    if floor > 0:
        rule = alt.Chart(alt.Data(values=[{"y": floor}])).mark_rule(strokeDash=[2, 4], color="#555")
        layers.insert(0, rule.encode(y=alt.Y("y:Q", scale=limits)))
    whole: alt.LayerChart = (
        alt.layer(*layers)
        .properties(width="container", height=height, title=title)
        .configure(font=FONT, background="white")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#eee", labelFontSize=12, titleFontSize=12)
        .configure_legend(orient="bottom", columns=3, labelFontSize=12, labelLimit=220)
        .configure_title(anchor="start", fontSize=14)
    )
    return whole


def fixed(spec: dict[str, Any], width: int = 760) -> dict[str, Any]:
    """The same specification with a width in pixels, for files."""
    return {**spec, "width": width}
