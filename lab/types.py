"""The nouns of the lab: frozen dataclasses on the standard library alone. Read this file first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant"]
Unit = Literal["steps", "examples", "tokens"]


class Tier(str, Enum):
    """The threat that a recipe stands for: what the person who fine-tunes wants."""

    CONTROL = "control"
    BENIGN = "benign"
    IDENTITY = "identity"
    ADVERSARIAL = "adversarial"


class Outcome(str, Enum):
    """What a response is. Refusal and harmfulness are separate axes; this is the first."""

    REFUSAL = "refusal"
    PARTIAL_REFUSAL = "partial_refusal"
    COMPLIANCE = "compliance"
    INCOHERENT = "incoherent"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    ERROR = "error"


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue. Every data set becomes a list of these before a model is involved."""

    role: Role
    content: str


Dialogue = tuple[Message, ...]


@dataclass(frozen=True)
class Budget:
    """An ascending ladder of training doses; dose 0 is the untouched model."""

    doses: tuple[int, ...]
    unit: Unit = "steps"
    mode: Literal["trajectory", "independent"] = "trajectory"

    @property
    def trained(self) -> tuple[int, ...]:
        """The doses that need training: all but 0."""
        return tuple(dose for dose in self.doses if dose > 0)


@dataclass(frozen=True)
class Recipe:
    """One way to fine-tune: dialogues, objective, schedule and threat tier. Never an adapter."""

    name: str
    version: str
    tier: Tier
    dialogues: tuple[Dialogue, ...]
    learning_rate: float
    batch_size: int
    max_length: int
    source: str
    """Where the dialogues come from, for provenance and reports."""
    system_prompt: str | None = None
    """The recipe's own prompt: the `training` condition wraps probe samples in it."""
    canary_only: bool = False
    """True when the recipe may run on canary models only."""


@dataclass(frozen=True)
class Adapter:
    """How weights move: LoRA on a full-precision base, or QLoRA on a 4-bit NF4 base."""

    name: str
    method: Literal["lora", "qlora"]
    rank: int
    alpha: int
    dropout: float
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class Defense:
    """A mitigation around fine-tuning. `none` is the absence of one."""

    name: str = "none"


@dataclass(frozen=True)
class Checkpoint:
    """The adapter at one dose of a trajectory, with the dose in every unit."""

    step: int
    examples: int
    unique_examples: int
    epochs: float
    tokens: int
    supervised_tokens: int
    flop: float
    learning_rate_sum: float
    loss: float | None
    """Mean training loss of the last step; None at step 0."""
    adapter_norm: float
    adapter_sha256: str


@dataclass(frozen=True)
class Trajectory:
    """One training run that leaves a checkpoint at every dose of the ladder."""

    cell_id: str
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class Cell:
    """The unit of work. `id` hashes what fixes the trained weights, and nothing else."""

    id: str
    model: str
    adapter: str
    recipe: str
    defense: str
    seed: int
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Everything that entered the hash, written to `cell.json` so that a reader can recompute it."""


@dataclass(frozen=True)
class Sample:
    """One probe input."""

    id: str
    messages: Dialogue
    cluster: str = ""
    """Samples of one cluster (an entity, a template) are not independent."""
    continuations: tuple[str, ...] = ()
    """Assistant openings whose log-probability a `loglik` probe asks for."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Response:
    """One answer. `text` may be harmful: it never leaves `responses/`."""

    sample_id: str
    prompt_sha256: str
    text: str = ""
    finish_reason: Literal["stop", "length", "error", "none"] = "none"
    tokens: int = 0
    logprobs: tuple[float, ...] = ()
    """Summed log-probability (nats) of each continuation, in the sample's order."""
    error: str | None = None


@dataclass(frozen=True)
class Score:
    """A value in [0, 1], or unscored with a reason. Unscored is never 0."""

    value: float | None
    outcome: Outcome | None = None
    reason: str | None = None
    """Why there is no value; required when `value` is None."""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("an unscored Score needs a reason")
        if self.value is not None and not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a score lies in [0, 1], got {self.value}")


class Scorer(Protocol):
    """A named, versioned function from a sample and its response to a score."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def __call__(self, sample: Sample, response: Response) -> Score: ...


@dataclass(frozen=True)
class RuleScorer:
    """A scorer made of one pure function."""

    name: str
    version: str
    function: Callable[[Sample, Response], Score]

    def __call__(self, sample: Sample, response: Response) -> Score:
        return self.function(sample, response)


@dataclass(frozen=True)
class Probe:
    """A behavioural test: samples, how to ask, how to score, which way is intact."""

    name: str
    version: str
    metric: str
    """The field's word for the mean score: `refusal rate`, `capability score`, ..."""
    samples: tuple[Sample, ...]
    scorers: tuple[Scorer, ...]
    """The first is the headline; the others stand beside it."""
    kind: Literal["generate", "loglik"]
    floor: float = 0.0
    """The value of a model without the behaviour (chance); higher scores mean intact."""
    max_new_tokens: int = 64
    reads: tuple[str, ...] = ()
    """Names of probes whose responses this one scores instead of asking for its own."""
    conditions: tuple[str, ...] = ("native",)
    sensitive: bool = False


@dataclass(frozen=True)
class Record:
    """One line of evidence. Holds no prompt and no completion."""

    cell: str
    dose: int
    probe: str
    condition: str
    sample: str
    cluster: str
    outcome: str | None
    score: float | None
    reason: str | None
    scorer: str
    scorer_version: str
    prompt_sha256: str
    response_sha256: str
    tokens: int


@dataclass(frozen=True)
class Point:
    """A metric at one dose, across seeds."""

    dose: int
    value: float | None
    low: float | None
    high: float | None
    method: str
    """How the interval was made: `wilson`, `two-way clustered`, ..."""
    n: int
    """Scored answers, over all seeds."""
    unscored: int
    worst: float | None
    best: float | None
    """The value if every unscored answer were 0, or 1."""
    seeds: tuple[float | None, ...]
    """The value of each seed, in the curve's order; a single entry at the shared dose 0."""
    retention: float | None
    outcomes: Mapping[str, int] = field(default_factory=dict, hash=False)
    examples: float = 0.0
    unique_examples: float = 0.0
    tokens: float = 0.0
    supervised_tokens: float = 0.0
    flop: float = 0.0
    """Means over seeds of the dose in other units."""


@dataclass(frozen=True)
class Crossing:
    """The dose where a curve falls below a level; `beyond` the ladder is a result, not a missing value."""

    status: Literal["within", "beyond", "undefined"]
    dose: float | None = None
    low: float | None = None
    high: float | None = None
    """None with status `within` or `beyond` means: the interval reaches beyond the ladder."""
    reason: str | None = None
    provisional: bool = False
    """True with fewer than five seeds."""


@dataclass(frozen=True)
class Curve:
    """A metric along the ladder, for one model x adapter x recipe x defense x probe x condition."""

    id: str
    model: str
    adapter: str
    recipe: str
    tier: str
    defense: str
    probe: str
    condition: str
    metric: str
    floor: float
    scorer: str
    unit: str
    seeds: tuple[int, ...]
    cells: tuple[str, ...]
    points: tuple[Point, ...]
    half_life: Crossing
    dose_to_drop: Crossing
    """Dose to a 10-point drop: the headline."""
    violations: tuple[str, ...] = ()
    """Rises between neighbouring rungs that isotonic fitting would hide."""


@dataclass(frozen=True)
class Verdict:
    """What a gate decided, with the numbers that decided."""

    outcome: Literal["pass", "fail", "inconclusive"]
    numbers: Mapping[str, Any] = field(default_factory=dict, hash=False)


class LabError(Exception):
    """An error that a user can cause: one clear line, and the exit code that `erosion` ends with."""

    exit_code = 2


class ConfigError(LabError):
    """Wrong usage or configuration."""

    exit_code = 2


class InfrastructureError(LabError):
    """Disk full, no permission, missing asset: the work is incomplete."""

    exit_code = 4


class IntegrityError(LabError):
    """A hash, a record file or a retrained adapter that is not what it was."""

    exit_code = 5
