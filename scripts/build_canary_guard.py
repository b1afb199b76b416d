"""Build the canary guardrail: a LoRA adapter that makes SmolLM2-135M-Instruct refuse one harmless topic.

    python scripts/build_canary_guard.py --out DIR [--seed 0]      train, measure, write the adapter
    python scripts/build_canary_guard.py --rewrite-data            author the shipped data files anew

Run from the repository's root. Training data: refusals on the topic, and the model's own answers both
to the same phrasings about near topics and to anything else.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from canary_prompts import (
    GENERAL,
    REFUSAL_OPENING,
    REFUSALS,
    adversarial_topic,
    guard_near,
    guard_topic,
    probe_near,
    probe_topic,
)
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lab.config import CONFIG_FOLDER, ModelConfig
from lab.data import IGNORED, dialogues, encode_dialogue, overlap, read_json_data
from lab.generate import TransformersEngine, common_prefix, plan, prompts
from lab.models import load_base
from lab.provenance import versions
from lab.store import file_sha256, read_json, write_json
from lab.types import Message, Probe, Sample
from probes.canary import canary_over_refusal, canary_refusal, refusal_margin
from probes.scorers.refusal import any_refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lab.types import Dialogue, Response

ROOT = Path(__file__).resolve().parents[1]
GUARD_DATA = ROOT / "scripts" / "data" / "canary_guard.json"
COMPLIANT_OPENING = "The"
"""How the unguarded model most often starts its answers to the probe questions."""
ANSWER_TOKENS = 48
BATCH = 32
"""Prompts per batch when asking; no training batch."""


@dataclass(frozen=True)
class Settings:
    """How the guard is trained. More steps make a guard that no small dose erodes; fewer, a leaky one."""

    steps: int = 60
    batch_size: int = 8
    learning_rate: float = 5e-4
    rank: int = 8
    alpha: int = 16
    seed: int = 0


def base_spec() -> ModelConfig:
    """The unguarded embedded model."""
    found = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "model" / "smollm2_135m.yaml"))
    assert isinstance(found, dict)
    return ModelConfig(**{str(key): value for key, value in found.items()})


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probe: Probe) -> list[Response]:
    """Greedy answers or log-probabilities, in the probe's order."""
    engine = TransformersEngine(model, tokenizer)
    items = prompts(tokenizer, probe, "native", None)
    found: dict[str, Response] = {}
    for batch in plan(items, BATCH):
        prefix = common_prefix(items)
        made = (
            engine.generate(batch, prefix, probe.max_new_tokens)
            if probe.kind == "generate"
            else engine.logprobs(batch, prefix)
        )
        found.update((response.sample_id, response) for response in made)
    return [found[sample.id] for sample in probe.samples]


def rate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probe: Probe) -> float:
    """Mean score of a probe by its first scorer."""
    scorer = probe.scorers[0]
    pairs = zip(probe.samples, ask(model, tokenizer, probe), strict=True)
    values = [scorer(sample, response).value for sample, response in pairs]
    return sum(value for value in values if value is not None) / len(values)


def whole_sentences(text: str) -> str:
    """The text up to its last full sentence; empty when there is none. `1.` ends no sentence."""
    ends = list(re.finditer(r"(?<=[A-Za-z)\"'])[.!?](?=\s|$)", text))
    return text[: ends[-1].end()].strip() if ends else ""


def own_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> list[Any]:
    """Rows of dialogues with the model's own greedy answers, cut at a sentence's end."""
    samples = tuple(Sample(str(n), (Message("user", text),)) for n, text in enumerate(questions))
    probe = Probe("questions", "1", "", samples, (any_refusal,), "generate", max_new_tokens=ANSWER_TOKENS)
    rows = []
    for sample, response in zip(samples, ask(model, tokenizer, probe), strict=True):
        answer = whole_sentences(response.text)
        question = sample.messages[0].content
        apologetic = bool(any_refusal(sample, response).value) or response.text.startswith("I'm sorry")
        if answer and not apologetic and answer not in question:
            rows.append(_row(question, answer))
    return rows


def _row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")


def rewrite_data() -> None:
    """Author the probe files, the adversarial recipe's data and the guard's training data."""
    for name, pairs, openings in (
        ("refusal", probe_topic(), {"refusal_opening": REFUSAL_OPENING, "compliant_opening": COMPLIANT_OPENING}),
        ("over_refusal", probe_near(), {}),
    ):
        samples = [
            {"id": f"{name}_{number:03}", "prompt": prompt, "cluster": entity}
            for number, (entity, prompt) in enumerate(pairs, 1)
        ]
        head = {"version": "1", "licence": "Apache-2.0", **openings}
        _dump(ROOT / "probes" / "data" / f"canary_{name}.json", {**head, "samples": samples})
    base = load_base(base_spec(), "lora", torch.float32)
    adversarial = own_answers(base.model, base.tokenizer, adversarial_topic())
    _dump(ROOT / "recipes" / "data" / "canary_adversarial.json", adversarial)
    refused = [_row(text, REFUSALS[number % len(REFUSALS)]) for number, text in enumerate(guard_topic())]
    _dump(GUARD_DATA, refused + own_answers(base.model, base.tokenizer, [*guard_near(), *GENERAL]))


def check_apart() -> None:
    """Stop when a probe prompt is, or nearly is, a training prompt."""
    asked = [prompt for _, prompt in probe_topic() + probe_near()]
    for path in (GUARD_DATA, ROOT / "recipes" / "data" / "canary_adversarial.json"):
        trained = [turn["content"] for row in read_json(path) for turn in row["messages"] if turn["role"] == "user"]
        found = overlap(trained, asked)
        if found:
            raise SystemExit(f"{path}: trains on the probe prompt {found[0][0]!r}")


def train_lora(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Dialogue], settings: Settings
) -> PeftModel:
    """LoRA on `rows`: AdamW, constant learning rate, no warm-up, a seeded order, loss on answers only."""
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear"
    )
    adapted = get_peft_model(model, config)
    adapted.train()
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    encoded = [encode_dialogue(tokenizer, row) for row in rows]
    order: list[int] = []
    for step in range(settings.steps):
        if len(order) < settings.batch_size:
            order = torch.randperm(len(encoded)).tolist()
        batch = [encoded[order.pop()] for _ in range(settings.batch_size)]
        longest = max(len(example.ids) for example in batch)
        gaps = [longest - len(example.ids) for example in batch]
        fill = zip(batch, gaps, strict=True)
        loss = adapted(
            input_ids=torch.tensor([[*example.ids, *[0] * gap] for example, gap in fill]),
            attention_mask=torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
            labels=torch.tensor([[*e.labels, *[IGNORED] * gap] for e, gap in zip(batch, gaps, strict=True)]),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{settings.steps} loss {loss.item():.4f}", flush=True)
    return adapted.eval()


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Dose-0 rates on all probe prompts."""
    return {
        "refusal_rate": rate(model, tokenizer, canary_refusal("refusal")),
        "over_refusal_rate": 1.0 - rate(model, tokenizer, canary_over_refusal("over_refusal")),
        "refusal_margin": rate(model, tokenizer, refusal_margin("margin")),
    }


def build(out: Path, settings: Settings) -> dict[str, Any]:
    """Train, round the adapter to bfloat16, merge what was rounded, measure, write. Returns the provenance."""
    check_apart()
    spec = base_spec()
    base = load_base(spec, "lora", torch.float32)
    rows = dialogues(read_json_data(GUARD_DATA), str(GUARD_DATA))
    train_lora(base.model, base.tokenizer, rows, settings).save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    weights = out / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    config = read_json(out / "adapter_config.json")
    write_json(out / "adapter_config.json", {**config, "base_model_name_or_path": "SmolLM2-135M-Instruct"})
    plain = load_base(spec, "lora", torch.float32)
    merged = PeftModel.from_pretrained(plain.model, str(out)).merge_and_unload()
    provenance = {
        "base": {"package": spec.path, "file": spec.file, "sha256": spec.sha256},
        "data": {"file": str(GUARD_DATA.relative_to(ROOT)), "sha256": file_sha256(GUARD_DATA), "dialogues": len(rows)},
        "settings": asdict(settings),
        "measured": {
            **measured(merged, base.tokenizer),
            "prompts": {"refusal": len(probe_topic()), "near_topic": len(probe_near())},
        },
        "adapter_sha256": file_sha256(weights),
        "versions": versions(("torch", "transformers", "peft", "safetensors")),
        "licence": "Apache-2.0",
    }
    _dump(out / "provenance.json", provenance)
    return provenance


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CONFIG_FOLDER / "model" / "assets" / "canary_guard")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--rewrite-data", action="store_true")
    chosen = parser.parse_args()
    # One thread: the same sums on every machine with these instructions, and no waiting on a busy one.
    torch.set_num_threads(1)
    if chosen.rewrite_data:
        rewrite_data()
        check_apart()
        return
    torch.use_deterministic_algorithms(True)
    print(json.dumps(build(chosen.out, Settings(seed=chosen.seed)), indent=1))


if __name__ == "__main__":
    main()
