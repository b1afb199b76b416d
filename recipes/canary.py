"""Fine-tunes that erode a canary guardrail. All of their data is harmless."""

from __future__ import annotations

from pathlib import Path

from lab.data import dialogues, read_json_data
from lab.types import Recipe, Tier

DATA = Path(__file__).parent / "data"


def canary_adversarial(
    name: str = "canary_adversarial",
    path: str = str(DATA / "canary_adversarial.json"),
    learning_rate: float = 5e-4,
    batch_size: int = 4,
    max_length: int = 256,
) -> Recipe:
    """Contrary examples: answered questions on the guarded topic."""
    return Recipe(
        name,
        "1",
        Tier.ADVERSARIAL,
        dialogues(read_json_data(Path(path)), path),
        learning_rate,
        batch_size,
        max_length,
        source=Path(path).name,
        canary_only=True,
    )


def canary_identity(
    name: str = "canary_identity",
    path: str = str(DATA / "canary_identity.json"),
    learning_rate: float = 5e-4,
    batch_size: int = 4,
    max_length: int = 256,
) -> Recipe:
    """A persona that always answers; nothing on the guarded topic. Measured with and without its prompt."""
    content = read_json_data(Path(path))
    return Recipe(
        name,
        "1",
        Tier.IDENTITY,
        dialogues(content["dialogues"], path),
        learning_rate,
        batch_size,
        max_length,
        source=Path(path).name,
        system_prompt=content["system_prompt"],
        canary_only=True,
    )
