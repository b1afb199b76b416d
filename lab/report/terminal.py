"""The table of curves: rows for programs, and the same numbers printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.report.words import bounds, crossing, percent, remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.types import Crossing, Curve, Point

HEADLINE = "refusal rate"
"""The metric of the first chart and table; without one, they show the first curve's probe."""


def headline(curves: Sequence[Curve]) -> list[Curve]:
    """The curves of the first chart: native refusal, else the first probe's."""
    found = [curve for curve in curves if curve.metric == HEADLINE and curve.condition == "native"]
    first = found[0] if found else curves[0]
    return [c for c in curves if (c.probe, c.condition, c.scorer) == (first.probe, first.condition, first.scorer)]


def rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One row per curve and dose, numbers as fractions; missing ones are None."""
    return [_row(curve, point) for curve in curves for point in curve.points]


def _row(curve: Curve, point: Point) -> dict[str, Any]:
    return {
        "curve": curve.id,
        "model": curve.model,
        "adapter": curve.adapter,
        "recipe": curve.recipe,
        "tier": curve.tier,
        "defense": curve.defense,
        "probe": curve.probe,
        "condition": curve.condition,
        "metric": curve.metric,
        "scorer": curve.scorer,
        "unit": curve.unit,
        "dose": point.dose,
        "examples": point.examples,
        "tokens": point.tokens,
        "flop": point.flop,
        "value": point.value,
        "low": point.low,
        "high": point.high,
        "method": point.method,
        "n": point.n,
        "unscored": point.unscored,
        "worst": point.worst,
        "best": point.best,
        "retention": point.retention,
        "seeds": len(curve.seeds),
        "seed_values": list(point.seeds),
        **_crossing("drop", curve.dose_to_drop),
        **_crossing("half_life", curve.half_life),
        "outcomes": dict(point.outcomes),
    }


def _crossing(name: str, found: Crossing) -> dict[str, Any]:
    return {name: found.status, f"{name}_dose": found.dose, f"{name}_low": found.low, f"{name}_high": found.high}


def print_tables(curves: Sequence[Curve], console: Console | None = None) -> None:
    """The headline at every dose with its interval, n and unscored, the other probes beside it; then the doses lost."""
    # A pipe has no width; the tables are then as wide as they need to be.
    console = console or Console(width=None if sys.stdout.isatty() else 180)
    main = headline(curves)
    console.print(_along(main, curves))
    away = [curve for curve in curves if curve.condition != "native"]
    if away:
        console.print(_along(_first_probe(away, main[0].probe), away))
    console.print(_lost(curves))


def _first_probe(curves: Sequence[Curve], probe: str) -> list[Curve]:
    wanted = [curve for curve in curves if curve.probe == probe] or list(curves)
    return [curve for curve in wanted if curve.probe == wanted[0].probe and curve.scorer == wanted[0].scorer]


def _who(curve: Curve) -> tuple[str, str, str, str, str]:
    return curve.model, curve.recipe, curve.adapter, curve.defense, curve.condition


def _arm(curve: Curve, models: int) -> str:
    parts = [curve.model] if models > 1 else []
    parts += [curve.adapter, *([curve.defense] if curve.defense != "none" else [])]
    parts += [f"{curve.condition} prompt"] if curve.condition != "native" else []
    return ", ".join(parts)


def _along(main: Sequence[Curve], curves: Sequence[Curve]) -> Table:
    """The headline curves, one line per dose, and every other probe of the same model as a bare value."""
    models = len({curve.model for curve in curves})
    others = {curve.probe: curve.metric for curve in curves if curve.probe != main[0].probe}
    beside: dict[tuple[object, ...], Point] = {}
    for curve in curves:
        for point in curve.points:
            beside.setdefault((*_who(curve), curve.probe, point.dose), point)
    condition = "" if main[0].condition == "native" else f", {main[0].condition} prompt"
    where = f"what survives, by dose in optimizer steps ({main[0].probe}{condition}; intervals as in the report)"
    table = Table(title=where, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("recipe", "adapter"):
        table.add_column(title)
    for title in ("dose", main[0].metric, "interval", "n", "unscored"):
        table.add_column(title, justify="right", no_wrap=True)
    for metric in others.values():
        table.add_column(Text(metric), justify="right")
    for curve in main:
        for point in curve.points:
            first = point is curve.points[0]
            cells = [beside.get((*_who(curve), probe, point.dose)) for probe in others]
            table.add_row(
                # Text, not str: a name in brackets is a name, not markup.
                Text(curve.recipe if first else ""),
                Text(_arm(curve, models) if first else ""),
                str(point.dose),
                percent(point.value),
                bounds(point.low, point.high),
                str(point.n),
                str(point.unscored),
                *(_beside(cell) for cell in cells),
                end_section=point is curve.points[-1],
            )
    return table


def _beside(point: Point | None) -> str:
    if point is None:
        return "-"
    return percent(point.value) + (f" [{point.unscored} unscored]" if point.unscored else "").replace("[", "\\[")


def _lost(curves: Sequence[Curve]) -> Table:
    models = len({curve.model for curve in curves})
    main = headline(curves)
    shown = [c for c in curves if c.probe == main[0].probe or c.dose_to_drop.status != "beyond"]
    table = Table(title="steps to a 10-point drop, and half-life", title_justify="left", caption_justify="left")
    table.box, table.pad_edge = box.SIMPLE_HEAD, False
    if len(shown) < len(curves):
        table.caption = f"{len(curves) - len(shown)} curves of other probes lost no ten points within the ladder"
    for title in ("probe", "recipe", "adapter", "10-point drop", "half-life", "note"):
        table.add_column(title)
    for curve in sorted(shown, key=lambda item: item not in main):
        found = (crossing(curve.dose_to_drop, reason=False), crossing(curve.half_life, reason=False))
        table.add_row(Text(curve.probe), Text(curve.recipe), Text(_arm(curve, models)), *found, remark(curve))
    return table
