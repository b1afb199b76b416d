"""The newcomer test: a toy model, recipe and probe are added by writing the files that CONTRIBUTING.md names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab import store

ROWS = {"a model": "toy", "a training method": "toy", "a kind of probe": "toy"}
PACKAGES = ("lab", "recipes", "probes", "configs")

CONTENT = {
    "configs/model/toy.yaml": "name: toy\nsource: local\npath: {model}\ndescription: a toy\n",
    "configs/recipe/toy.yaml": "_target_: recipes.toy.toy\nname: toy\ncount: 8\ndescription: a toy\n",
    "configs/probe/toy.yaml": (
        "# @package probe.toy\n_target_: probes.toy.toy\nname: toy\nlimit: 3\ndescription: a toy\n"
    ),
    "recipes/toy.py": '''"""Counting."""

from lab.types import Message, Recipe, Tier


def toy(name: str, count: int) -> Recipe:
    """Dialogues that count."""
    dialogues = tuple((Message("user", f"What follows {i}?"), Message("assistant", f"{i + 1}.")) for i in range(count))
    return Recipe(name, "1", Tier.BENIGN, dialogues, 1e-3, 4, 128, source="counted")
''',
    "probes/toy.py": '''"""Short answers."""

from lab.types import Message, Probe, Response, RuleScorer, Sample, Score


def _short(sample: Sample, response: Response) -> Score:
    return Score(float(len(response.text) < 20))


def toy(name: str, limit: int) -> Probe:
    """Share of short answers."""
    samples = tuple(Sample(f"toy{i}", (Message("user", f"Say {i} shortly."),)) for i in range(limit))
    return Probe(name, "1", "short answers", samples, (RuleScorer("short", "1", _short),), "generate",
                 max_new_tokens=4)
''',
}


def _table(root: Path) -> dict[str, list[str]]:
    """CONTRIBUTING.md's table: what I want to add -> the files that I write, with `toy` as their name."""
    rows = re.findall(r"^\| (an? .+?) \| (.+?) \| .+? \|$", (root / "CONTRIBUTING.md").read_text(), re.M)
    return {what: [re.sub(r"<\w+>", "toy", file) for file in re.findall(r"`([^`]+)`", files)] for what, files in rows}


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_table_names_the_files_of_each_row(root: Path) -> None:
    table = _table(root)
    assert len(table) >= 8
    for what in ROWS:
        assert table[what], what


@pytest.mark.slow
def test_adding_a_model_a_recipe_and_a_probe_takes_exactly_the_named_files(
    root: Path, tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "checkout"
    for package in PACKAGES:
        shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = _hashes(copy)
    named = {file for what in ROWS for file in _table(root)[what]}
    assert named == set(CONTENT), "the table asks for other files than this test writes"
    for file in named:
        (copy / file).write_text(CONTENT[file].replace("{model}", str(tiny_model)))

    words = ["model=toy", "recipe=toy", "probe=[toy]", "budget.doses=[0,1]", "seeds=[0]"]
    words += ["engine.dtype=float32", "jobs=1", "stats.resamples=20"]
    done = subprocess.run(
        [sys.executable, "-m", "lab.cli", "run", *words, f"out={tmp_path / 'runs'}", "--json"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {row["probe"] for row in json.loads(done.stdout)} == {"toy"}

    found = {
        (row["dose"], row["sample"])
        for path in (tmp_path / "runs").glob("*/records/*.parquet")
        for row in store.read_records(path).to_dicts()
    }
    assert found == {(dose, f"toy{i}") for dose in (0, 1) for i in range(3)}
    after = _hashes(copy)
    assert set(after) - set(before) == named
    assert {file: after[file] for file in before} == before

    listed = subprocess.run(
        [sys.executable, "-m", "lab.cli", "list", "--json"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    )
    toys = {row["group"] for row in json.loads(listed.stdout) if row["name"] == "toy"}
    assert toys == {"models", "recipes", "probes"}
