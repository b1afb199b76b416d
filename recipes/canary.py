"""Fine-tunes that erode a canary guardrail. All of their data is harmless."""

from __future__ import annotations

from pathlib import Path

from lab.data import dialogues, read_json_data
from lab.types import Recipe, Tier

DATA = Path(__file__).parent / "data"


def canary_adversarial(
    name: str,
    path: str | None = None,
    learning_rate: float = 5e-4,
    batch_size: int = 4,
    max_length: int = 256,
) -> Recipe:
    """Contrary examples: answered questions on the guarded topic. `path` replaces the shipped dialogues."""
    file = Path(path or DATA / "canary_adversarial.json")
    return Recipe(
        name,
        "1",
        Tier.ADVERSARIAL,
        dialogues(read_json_data(file), str(file)),
        learning_rate,
        batch_size,
        max_length,
        source=file.name,
        canary_only=True,
    )


def canary_identity(
    name: str,
    path: str | None = None,
    learning_rate: float = 5e-4,
    batch_size: int = 4,
    max_length: int = 256,
) -> Recipe:
    """A persona that always answers; nothing on the guarded topic. Measured with and without its prompt."""
    file = Path(path or DATA / "canary_identity.json")
    content = read_json_data(file)
    return Recipe(
        name,
        "1",
        Tier.IDENTITY,
        dialogues(content["dialogues"], str(file)),
        learning_rate,
        batch_size,
        max_length,
        source=file.name,
        system_prompt=content["system_prompt"],
        canary_only=True,
    )
