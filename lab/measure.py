"""Checkpoints x probes to responses, and responses to records."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lab.store import read_jsonl, text_sha256
from lab.types import IntegrityError, Record, Response, Sample, Score

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lab.types import Probe, Scorer


def responses(path: Path) -> list[Response]:
    """Typed lines of a responses file. Raises IntegrityError when one is not a response."""
    try:
        return [Response(**{**row, "logprobs": tuple(row["logprobs"])}) for row in read_jsonl(path)]
    except (TypeError, KeyError) as error:
        raise IntegrityError(f"{path} is no responses file: delete it and run the same command again") from error


def score(scorer: Scorer, sample: Sample, response: Response) -> Score:
    """Apply one scorer. A failure is an unscored Score with its reason, never a 0 and never a crash."""
    if response.error is not None:
        return Score(None, reason=f"no answer: {response.error}")
    try:
        return scorer(sample, response)
    except Exception as error:
        # The message may quote the answer, which must stay in responses/; its type may not.
        return Score(None, reason=f"scorer failed: {type(error).__name__}")


def records(
    cell_id: str,
    dose: int,
    probe: Probe,
    condition: str,
    answered: Iterable[tuple[Sample, Response]],
) -> list[dict[str, Any]]:
    """One record per sample and scorer, in the probe's order."""
    rows = []
    for sample, response in answered:
        for scorer in probe.scorers:
            result = score(scorer, sample, response)
            rows.append(
                asdict(
                    Record(
                        cell=cell_id,
                        dose=dose,
                        probe=probe.name,
                        condition=condition,
                        sample=sample.id,
                        cluster=sample.cluster,
                        outcome=result.outcome.value if result.outcome else None,
                        score=result.value,
                        reason=result.reason,
                        scorer=scorer.name,
                        scorer_version=scorer.version,
                        prompt_sha256=response.prompt_sha256,
                        response_sha256=response_sha256(response),
                        tokens=response.tokens,
                    )
                )
            )
    return rows


def response_sha256(response: Response) -> str:
    """Hash of what was answered: the text, or the log-probabilities of a `loglik` probe."""
    return text_sha256(response.text + "".join(f" {value:.6f}" for value in response.logprobs))


def pair(probe: Probe, answers: Sequence[Response], where: Path) -> list[tuple[Sample, Response]]:
    """Samples with their answers, in the probe's order. Raises IntegrityError when one is missing."""
    by_id = {answer.sample_id: answer for answer in answers}
    missing = [sample.id for sample in probe.samples if sample.id not in by_id]
    if missing or len(by_id) != len(probe.samples):
        raise IntegrityError(
            f"{where} answers {len(by_id)} of {len(probe.samples)} samples: delete it and run the same command again"
        )
    return [(sample, by_id[sample.id]) for sample in probe.samples]
