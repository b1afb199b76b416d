"""Adapter weights: files, their low-rank pairs, and the measuring copy into which they are merged."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save

from lab.store import os_errors, write_bytes
from lab.types import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from lab.models import Base


class MeasuringCopy:
    """A second set of weights into which one checkpoint at a time is merged; the base is never touched.

    Embeddings and norms, which LoRA on linear layers never moves, are shared with the base.
    """

    def __init__(self, base: Base) -> None:
        embeddings = {id(base.model.get_input_embeddings().weight), id(base.model.get_output_embeddings().weight)}
        own, shared = {}, {}
        for name, parameter in base.model.named_parameters():
            if id(parameter) in embeddings or parameter.ndim < 2:
                shared[id(parameter)] = parameter
            else:
                own[name] = parameter
        self._pristine = own
        self.model = copy.deepcopy(base.model, shared)  # what is in this memo is not copied

    @torch.no_grad()
    def apply(self, adapter: Mapping[str, Tensor], scaling: float) -> PreTrainedModel:
        """Set the copy to base + scaling * B A for every adapted weight, and to the base elsewhere.

        Computed in float32 and rounded once. An empty adapter gives the untouched model, bit for bit.
        """
        deltas = lora_pairs(adapter)
        unknown = set(deltas) - set(self._pristine)
        if unknown:
            raise IntegrityError(f"adapter weights for unknown module {sorted(unknown)[0]}")
        copied = dict(self.model.named_parameters())
        for name, pristine in self._pristine.items():
            parameter = copied[name]
            parameter.copy_(pristine)
            if name in deltas:
                a, b = (part.to(parameter.device, torch.float32) for part in deltas[name])
                if bool(b.any()):
                    parameter.copy_(pristine.float() + scaling * (b @ a))
        return self.model


def lora_pairs(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Base weight name -> (A: rank x in, B: out x rank), from PEFT's state dict names."""
    pairs = {}
    for name, tensor in adapter.items():
        if ".lora_A." in name:
            target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            pairs[target] = (tensor, adapter[name.replace(".lora_A.", ".lora_B.")])
    return pairs


def save_adapter(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write adapter weights as private safetensors, atomically."""
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Not safetensors' own file writer: it reports a full disk as an error of its own type.
    write_bytes(path, save({key: value.detach().cpu().contiguous() for key, value in state.items()}), private=True)


def load_adapter(path: Path) -> dict[str, Tensor]:
    """Read adapter weights. Raises IntegrityError for a file that is no safetensors."""
    try:
        return load_file(path)
    except Exception as error:
        raise IntegrityError(f"{path} is not a whole adapter file: delete it and run the same command again") from error
