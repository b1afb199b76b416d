"""Fine-tunes that mean no harm, and the control that moves nothing."""

from __future__ import annotations

from pathlib import Path

from lab.data import dialogues, read_json_data
from lab.types import Recipe, Tier

DATA = Path(__file__).parent / "data"


def benign(
    name: str = "benign",
    path: str = str(DATA / "benign.json"),
    learning_rate: float = 5e-4,
    batch_size: int = 4,
    max_length: int = 256,
) -> Recipe:
    """Ordinary instructions with the base model's own answers."""
    return Recipe(
        name,
        "1",
        Tier.BENIGN,
        dialogues(read_json_data(Path(path)), path),
        learning_rate,
        batch_size,
        max_length,
        source=Path(path).name,
    )


def noop(
    name: str = "noop", path: str = str(DATA / "benign.json"), batch_size: int = 4, max_length: int = 256
) -> Recipe:
    """The negative control: the benign recipe at learning rate 0. Every record must equal dose 0."""
    return Recipe(
        name,
        "1",
        Tier.CONTROL,
        dialogues(read_json_data(Path(path)), path),
        0.0,
        batch_size,
        max_length,
        source=Path(path).name,
    )
