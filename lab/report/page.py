"""The page: one HTML file with its charts, numbers, method and limits, and no network request."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lab.report import charts, words
from lab.store import canonical, text_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.types import Curve

HEADLINE = "refusal rate"
"""The metric of the first chart; a report without one starts with its first curve's metric."""


def headline(curves: Sequence[Curve]) -> list[Curve]:
    """The curves of the first chart: native refusal, else the first probe's."""
    found = [curve for curve in curves if curve.metric == HEADLINE and curve.condition == "native"]
    first = found[0] if found else curves[0]
    return [c for c in curves if (c.probe, c.condition, c.scorer) == (first.probe, first.condition, first.scorer)]


def figures(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Vega-Lite specifications by file name: the headline in every unit, then one chart per probe."""
    recipes = sorted({curve.recipe for curve in curves}, key=[curve.recipe for curve in curves].index)
    main = headline(curves)
    found = {
        f"erosion-{unit}": charts.chart(main, unit, recipes, "", 360).to_dict()
        for unit in charts.UNITS
        if unit == "steps" or any(charts.amount(point, unit) for curve in main for point in curve.points)
    }
    groups: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.probe, curve.condition, curve.scorer), []).append(curve)
    for (probe, condition, scorer), group in groups.items():
        several = Counter((other[0], other[1]) for other in groups)[(probe, condition)] > 1
        title = probe.replace("_", " ") + ("" if condition == "native" else f" ({condition} prompt)")
        name = "-".join([probe, condition, *([scorer] if several else [])])
        found[name] = charts.chart(group, "steps", recipes, title, 230).to_dict()
    return found


def _embeddable(value: Any) -> Markup:
    """JSON that cannot close its script element, whatever names the curves carry."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def citation(header: dict[str, Any], sha256: str) -> dict[str, str]:
    """CITATION.cff 1.2.0 and BibTeX of this report; its identity is the hash of its curves."""
    lab = (header["provenance"].get("code") or {}).get("lab") or "unknown"
    title = f"Erosion report {header['name']} ({sha256[:12]})"
    cff = (
        "cff-version: 1.2.0\n"
        "message: Cite this report with the hash of its curves.json.\n"
        "type: dataset\n"
        f"title: {json.dumps(title)}\n"
        "authors:\n  - name: whoever ran this report\n"
        f"identifiers:\n  - type: other\n    value: sha256:{sha256}\n    description: curves.json\n"
        f'references:\n  - type: software\n    title: Guardrail erosion lab\n    version: "{lab}"\n'
        "    authors:\n      - name: The guardrail erosion lab\n"
    )
    bibtex = (
        f"@misc{{erosion-{sha256[:12]},\n  title = {{{title}}},\n"
        f"  note = {{Guardrail erosion lab {lab}; curves.json sha256 {sha256}}}\n}}\n"
    )
    return {"cff": cff, "bibtex": bibtex}


def render(curves: Sequence[Curve], header: dict[str, Any], specs: dict[str, dict[str, Any]], script: str) -> str:
    """The whole page. Every number on it comes from `curves` and `header`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": words.percent,
        "number": words.number,
        "crossing": words.crossing,
        "interval": words.interval,
    }
    main = headline(curves)
    ordered = sorted(curves, key=lambda curve: (curve not in main, curve.probe, curve.condition))
    failed = [control for control in header["controls"] if control["holds"] is False]
    text = environment.from_string((Path(__file__).parent / "page.html").read_text("utf-8")).render(
        name=header["name"],
        header=header,
        curves=ordered,
        main=main,
        sentences=[words.verdict(curve) for curve in main if curve.tier != "control"],
        failed=failed,
        label=charts.label,
        units={name: unit for unit, name in ((u, f"erosion-{u}") for u in charts.UNITS) if name in specs},
        unit_words=charts.UNITS,
        others=[name for name in specs if not name.startswith("erosion-")],
        specs=_embeddable(specs),
        script=Markup(script.replace("</script", "<\\/script")),
        single=all(len(curve.seeds) == 1 for curve in curves),
        provisional=any(curve.half_life.provisional for curve in main),
        flop=max((point.flop for curve in curves for point in curve.points), default=0.0),
        content_id=text_sha256(canonical([curve.id for curve in curves]))[:12],
        json=lambda value: json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False),
    )
    return text + "\n"
