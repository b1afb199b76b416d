"""The table of curves: rows for programs, and the same rows printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lab.report.words import crossing, interval, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.types import Curve


def rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One row per curve and dose, numbers as fractions; missing ones are None."""
    return [
        {
            "curve": curve.id,
            "recipe": curve.recipe,
            "adapter": curve.adapter,
            "probe": curve.probe,
            "condition": curve.condition,
            "metric": curve.metric,
            "scorer": curve.scorer,
            "dose": point.dose,
            "value": point.value,
            "low": point.low,
            "high": point.high,
            "method": point.method,
            "n": point.n,
            "unscored": point.unscored,
            "retention": point.retention,
            "seeds": len(curve.seeds),
            "outcomes": dict(point.outcomes),
        }
        for curve in curves
        for point in curve.points
    ]


def print_tables(curves: Sequence[Curve], console: Console | None = None) -> None:
    """Every curve along its doses, then the doses that cost ten points and half."""
    # A pipe has no width; the tables are then as wide as they need to be.
    console = console or Console(width=None if sys.stdout.isatty() else 180)
    along = Table(title="what survives, by dose in optimizer steps (95 % intervals)", title_justify="left")
    doses = sorted({point.dose for curve in curves for point in curve.points})
    for name in ("probe", "recipe", "adapter"):
        along.add_column(name, no_wrap=True)
    for dose in doses:
        along.add_column(str(dose), justify="right")
    for curve in sorted(curves, key=lambda item: (item.probe, item.condition)):
        points = {point.dose: point for point in curve.points}
        probe = curve.probe if curve.condition == "native" else f"{curve.probe} ({curve.condition})"
        cells = [interval(points.get(dose)) for dose in doses]
        along.add_row(probe, curve.recipe, curve.adapter, *cells)
    console.print(along)
    lost = Table(title="dose to a 10-point drop, and half-life", title_justify="left")
    for name in ("probe", "recipe", "adapter", "seeds", "n", "unscored", "10-point drop", "half-life"):
        lost.add_column(name)
    for curve in sorted(curves, key=lambda item: (item.probe, item.condition)):
        probe = curve.probe if curve.condition == "native" else f"{curve.probe} ({curve.condition})"
        answers = sum(point.n for point in curve.points)
        unscored = sum(point.unscored for point in curve.points)
        lost.add_row(
            probe,
            curve.recipe,
            curve.adapter,
            str(len(curve.seeds)),
            number(answers),
            number(unscored),
            crossing(curve.dose_to_drop, reason=False),
            crossing(curve.half_life, reason=False),
        )
    console.print(lost)
