"""Files to dialogues, and the overlap check. Rendering and masking with the tiny model's own template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import data
from lab.store import file_sha256, text_sha256
from lab.types import ConfigError, Message

if TYPE_CHECKING:
    from pathlib import Path

WORDS = st.lists(
    st.sampled_from(["bread", "flour", "water", "salt", "yeast", "oven", "crust", "crumb", "loaf", "dough"]), min_size=1
)


def _row(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_data_file_is_read_and_its_pinned_hash_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": "é"}', "utf-8")
    assert data.read_json_data(path, file_sha256(path)) == {"a": "é"}
    with pytest.raises(ConfigError, match=r"a\.json has sha256 .*, the config pins 0000"):
        data.read_json_data(path, "0000")


@pytest.mark.parametrize("sha256", [None, "0" * 64])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is not readable as JSON"),
        (b'{"a": [1, 2', "is not readable as JSON"),
        (b"\xff\xfe\x00", "is not readable as JSON"),
    ],
)
def test_an_unreadable_data_file_is_one_clear_line(
    tmp_path: Path, content: bytes | None, words: str, sha256: str | None
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        data.read_json_data(path, sha256)
    assert f"data file {path} {words}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    for sha256 in (None, "0" * 64):
        with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
            data.read_json_data(tmp_path, sha256)


def test_rows_become_dialogues() -> None:
    row = _row(("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"))
    expected = (Message("system", "Be brief."), Message("user", "Hello"), Message("assistant", "Hi"))
    assert data.dialogues([row], "f") == (expected,)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "needs a list 'messages'"),
        ("text", "needs a list 'messages'"),
        ({"messages": []}, "needs a list 'messages'"),
        ({"messages": "text"}, "needs a list 'messages'"),
        ({"messages": ["text"]}, "unknown role None"),
        (_row(("human", "Hello"), ("assistant", "Hi")), "unknown role 'human'"),
        (_row(("user", "  "), ("assistant", "Hi")), "the user turn is empty"),
        (_row(("user", "Hello"), ("assistant", "")), "the assistant turn is empty"),
        (_row(("user", "Hello")), "last turn must be the assistant's"),
        (_row(("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")), "last turn must be the assistant's"),
    ],
)
def test_a_bad_row_is_named_by_file_and_number(row: Any, words: str) -> None:
    good = _row(("user", "Hello"), ("assistant", "Hi"))
    with pytest.raises(ConfigError) as caught:
        data.dialogues([good, row], "set.json")
    assert str(caught.value).startswith("set.json, row 1: ") and words in str(caught.value)


@pytest.mark.parametrize("rows", [{"a": 1}, {}, "text", "", 3, None])
def test_a_file_that_holds_no_list_of_rows_is_refused(rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"^set\.json: needs a list of rows"):
        data.dialogues(rows, "set.json")


@given(WORDS)
def test_a_prompt_overlaps_with_itself_whatever_its_case_and_punctuation(words: list[str]) -> None:
    prompt = " ".join(words)
    shouted = ", ".join(words).upper() + "?!"
    assert data.overlap([shouted], [prompt]) == [(data.normalise(prompt), "exact")]


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=5), st.integers(1, 6))
def test_overlap_is_what_its_definition_says(training: list[list[str]], probing: list[list[str]], n: int) -> None:
    def grams(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    expected = []
    for words in probing:
        if words in training:
            expected.append((" ".join(words), "exact"))
        elif any(grams(words) & grams(other) for other in training):
            expected.append((" ".join(words), "n-gram"))
    assert data.overlap([" ".join(words) for words in training], [" ".join(words) for words in probing], n) == expected


def test_eight_words_in_a_row_overlap_and_seven_do_not() -> None:
    probe = "one two three four five six seven eight nine"
    assert data.overlap(["zero one two three four five six seven eight"], [probe]) == [(probe, "n-gram")]
    assert data.overlap(["zero one two three four five six seven other"], [probe]) == []


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_loss_falls_on_the_assistants_words_and_their_end_alone(tokenizer: Any) -> None:
    dialogue = (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "First answer."),
        Message("user", "More"),
        Message("assistant", "Second answer."),
    )
    encoded = data.encode_dialogue(tokenizer, dialogue)
    assert len(encoded.ids) == len(encoded.labels)
    assert all(label in (data.IGNORED, token) for token, label in zip(encoded.ids, encoded.labels, strict=True))
    kept = [label for label in encoded.labels if label != data.IGNORED]
    assert tokenizer.decode(kept) == "First answer.<|im_end|>Second answer.<|im_end|>"
    rendered = data.render(tokenizer, dialogue, reply=False)
    assert tokenizer.decode(list(encoded.ids)) == rendered
    assert encoded.sha256 == text_sha256(rendered)


def test_training_and_probing_meet_the_same_tokens(tokenizer: Any) -> None:
    dialogue = (Message("user", "What is bread?"), Message("assistant", "Flour and water."))
    prompt, whole = data.encode_prompt(tokenizer, dialogue[:1]), data.encode_dialogue(tokenizer, dialogue)
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert set(prompt.labels) == {data.IGNORED} == set(whole.labels[: len(prompt.ids)])
    assert whole.labels[len(prompt.ids)] != data.IGNORED
    assert prompt.sha256 == text_sha256(data.render(tokenizer, dialogue[:1], reply=True))


def test_no_chat_template_is_refused(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tiny_model)
    bare.chat_template = None
    with pytest.raises(ConfigError, match="has no chat template"):
        data.encode_prompt(bare, (Message("user", "Hello"),))


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_model: Path) -> None:
    """Some templates strip a thinking trace from all but the last turn; masks made turn by turn would be wrong."""
    from transformers import AutoTokenizer

    rewriting = AutoTokenizer.from_pretrained(tiny_model)
    rewriting.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] if loop.last else 'cut' }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    turns = [(role, f"turn {i}") for i in range(2) for role in ("user", "assistant")]
    with pytest.raises(ConfigError, match="rewrites earlier turns"):
        data.encode_dialogue(rewriting, data.dialogues([_row(*turns)], "f")[0])


def test_dialogues_survive_json(tmp_path: Path) -> None:
    row = _row(("user", 'A "quoted" line\nand another\u2028'), ("assistant", "Yes"))
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row]))
    assert data.dialogues(data.read_json_data(path), "a.json")[0][0].content == row["messages"][0]["content"]
