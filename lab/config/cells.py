"""Overrides to one RunConfig per cell."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from lab.config.load import compose, one_line
from lab.types import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lab.config.schema import RunConfig


def multirun(overrides: Sequence[str]) -> list[list[str]]:
    """The product of comma-separated values, as Hydra's own `-m` reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(one_line(error)) from error
    axes = [
        [f"{item.key_or_group}={value}" for value in item.sweep_string_iterator()]
        if item.is_sweep_override()
        else [str(item.input_line)]
        for item in parsed
    ]
    return [list(names) for names in itertools.product(*axes)]


def plan(overrides: Sequence[str]) -> list[RunConfig]:
    """Compose, then one RunConfig per cell: the sweep's blocks if it has any, else one per seed."""
    config = compose(overrides)
    if not config.sweep.cells:
        return [dataclasses.replace(config, seeds=[seed]) for seed in config.seeds]
    cells = []
    for block in config.sweep.cells:
        for extra, seeds in _block(block, config):
            composed = compose([*overrides, *extra])
            cells += [(seed, dataclasses.replace(composed, seeds=[seed])) for seed in seeds]
    # Seed by seed, so that an interrupted sweep has whole rounds of every recipe rather than some recipes.
    return [cell for _, cell in sorted(cells, key=lambda pair: pair[0])]


def _block(block: dict[str, Any], config: RunConfig) -> Iterator[tuple[list[str], list[int]]]:
    allowed = {"recipe", "adapter", "defense", "model", "seeds", "doses"}
    unknown = sorted(set(block) - allowed)
    if unknown:
        raise ConfigError(f"sweep.cells: unknown key '{unknown[0]}'; valid keys: {', '.join(sorted(allowed))}")
    axes = [
        [f"{key}={name}" for name in (value if isinstance(value, list) else [value])]
        for key, value in block.items()
        if key not in ("seeds", "doses")
    ]
    doses = [f"budget.doses={block['doses']}"] if "doses" in block else []
    for names in itertools.product(*axes):
        yield [*names, *doses], list(block.get("seeds", config.seeds))
