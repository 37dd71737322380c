"""What a user can assemble today: transformers, PEFT and Liger, set up as one who knows them would."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..kernels.upload import to_device
from ..planner.inputs.base_model import BaseModel
from .batch import IGNORED, PackedRows
from .bench_train_laps import Laps, Measured, peak_memory_gib, start_counting_memory, together
from .bench_train_spec import LORA_RANK, Point, Question
from .bench_train_work import AdapterData, adapter_data, packs
from .errors import EngineError
from .model import read_config
from .random_weights import DEFAULT_STD, random_weights
from .varlen_interface import register_varlen

_PACKS = 4
_PADDED_BATCHES = 8
"""In a pass, of each data set."""
_PADDED_BATCH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """How a peer is put together."""

    padded: bool = False
    adapters: torch.dtype | None = torch.float32
    """Dtype of the LoRA matrices; None: no adapters."""
    autocast: bool = False
    liger: bool = False


ASSEMBLIES = {
    "peft-padded": Assembly(padded=True, autocast=True),
    "peft-packed": Assembly(),
    "peft-packed-autocast": Assembly(autocast=True),
    "peft-packed-bf16": Assembly(adapters=torch.bfloat16),
    "peft-packed-bf16-liger": Assembly(adapters=torch.bfloat16, liger=True),
    "frozen": Assembly(adapters=None),
    "frozen-liger": Assembly(adapters=None, liger=True),
}
"""How each peer of SYSTEMS is put together."""


def build_base(
    folder: Path, assembly: Assembly, *, model: BaseModel, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """The frozen base in training mode. Raises ImportError where Liger is asked for and not there."""
    from transformers import AutoModelForCausalLM

    config = read_config(folder)
    if assembly.liger:
        # Patches the family's classes before one is made, as Liger's documentation asks for.
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        MODEL_TYPE_TO_APPLY_LIGER_FN[config.model_type]()
    attention = "sdpa" if assembly.padded else register_varlen()
    if not model.random_weights:
        loaded: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        return loaded.to(device).requires_grad_(False).train()
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)  # type: ignore[no-untyped-call]
    std = getattr(config, "initializer_range", None) or DEFAULT_STD
    random_weights(whole, seed=0, dtype=dtype, device=device, std=std, tied_head=bool(config.tie_word_embeddings))
    # inv_freq is no parameter: a meta build leaves it without values.
    whole.model.rotary_emb = type(whole.model.rotary_emb)(config=config).to(device)
    made: nn.Module = whole.train()
    return made


def add_adapter(base: nn.Module, assembly: Assembly, *, dropout: float) -> Any:
    """The base in PEFT's wrapper, r = 16 on all linears; the base itself where there is to be no adapter."""
    if assembly.adapters is None:
        return base
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        lora_dropout=dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    # PEFT widens bf16 adapters to float32 unless told not to.
    wide = assembly.adapters == torch.float32
    return get_peft_model(base, settings, autocast_adapter_dtype=wide).train()


class Trainer:
    """Microbatches through one peer, an optimizer step as soon as a global batch's samples have gone through."""

    def __init__(self, model: Any, assembly: Assembly, *, global_batch_size: int, device: torch.device) -> None:
        self._model = model
        self._assembly = assembly
        self._global_batch_size = global_batch_size
        self._device = device
        self._embeddings = model.get_input_embeddings()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = (
            torch.optim.AdamW(self._parameters, lr=2e-4, weight_decay=0.0, fused=True) if self._parameters else None
        )
        self._waiting = 0
        self.loss = torch.zeros(())
        """Of the last microbatch."""

    def train(self, batch: dict[str, Any], *, num_samples: int) -> None:
        """Forward, backward, and a step where one is due, the gradient's norm clipped to 1 as Trainer does."""
        if self._optimizer is None:
            # The gradient has to come down to the embeddings, as with adapters in every layer.
            batch["inputs_embeds"] = self._embeddings(batch.pop("input_ids")).requires_grad_()
        with self._autocast():
            loss = self._model(**batch, use_cache=False).loss
        loss.backward()
        self.loss = loss.detach()
        self._waiting += num_samples
        if self._optimizer is not None and self._waiting >= self._global_batch_size:
            self._waiting = 0
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> AbstractContextManager[object]:
        if not self._assembly.autocast:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


def measure_peer(base: nn.Module, point: Point, question: Question) -> tuple[Measured, dict[str, Any]]:
    """Tokens per second of one adapter after another, each weighted with the tokens of its data set."""
    assembly, data = ASSEMBLIES[question.system], adapter_data(point, question)
    model = add_adapter(base, assembly, dropout=point.dropout)
    try:
        return _measure_all(model, data, point, question)
    finally:
        if assembly.adapters is not None:
            # The next point puts an adapter of its own into the base.
            model.zero_grad(set_to_none=True)
            model.unload()


def _measure_all(
    model: Any, data: Sequence[AdapterData], point: Point, question: Question
) -> tuple[Measured, dict[str, Any]]:
    distinct = {one.dataset: one for one in data}
    found: dict[str, Measured] = {}
    peaks: list[tuple[float | None, float | None]] = []
    smaller: list[str] = []
    for one in distinct.values():
        size = _PADDED_BATCH
        while one.dataset not in found:
            try:
                found[one.dataset] = _measure_one(
                    model, one, point, question, size=size, seconds=question.seconds / len(distinct)
                )
            except torch.OutOfMemoryError:
                if not ASSEMBLIES[question.system].padded or size == 1:
                    raise
                size //= 2
                smaller.append(f"{one.dataset}: out of memory with {2 * size} samples, measured with {size}")
        peaks.append(peak_memory_gib(next(model.parameters()).device))
    figure = together([(found[one.dataset], one.num_tokens()) for one in data])
    allocated, reserved = (
        max((gib for gib in kind if gib is not None), default=None) for kind in zip(*peaks, strict=True)
    )
    facts: dict[str, Any] = {"peak_memory_gib": allocated, "peak_reserved_gib": reserved}
    return figure, facts | ({"note": "; ".join(smaller)} if smaller else {})


def _measure_one(
    model: Any, data: AdapterData, point: Point, question: Question, *, size: int, seconds: float
) -> Measured:
    assembly, device = ASSEMBLIES[question.system], next(model.parameters()).device
    num_words: int = model.config.vocab_size
    # What another data set or a failed attempt left behind would count against this one.
    model.zero_grad(set_to_none=True)
    start_counting_memory(device)
    trainer = Trainer(model, assembly, global_batch_size=point.global_batch_size, device=device)
    laps, enough = Laps(device, seconds=seconds), False
    while not enough:
        batches = padded(data, size, num_words, device) if assembly.padded else packed(data, point, num_words, device)
        for batch, num_samples, num_tokens in islice(batches, _PADDED_BATCHES if assembly.padded else _PACKS):
            trainer.train(batch, num_samples=num_samples)
            laps.lap(num_tokens)
        enough = laps.turn()
    measured = laps.measured()
    # No speed of what computes nothing: fresh adapters on a random model stay near log(words).
    if not torch.isfinite(trainer.loss):
        raise EngineError(f"the loss came out as {trainer.loss.item()}; no speed is told of that")
    return measured


Batches = Iterator[tuple[dict[str, Any], int, int]]
"""(what the model is called with, samples, tokens without padding)."""


def padded(data: AdapterData, size: int, num_words: int, device: torch.device) -> Batches:
    """Batches of `size` samples in the data's order, padded on the right to the longest of them."""
    for first in range(0, len(data.lengths), size):
        lengths = data.lengths[first : first + size]
        mask = np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
        ids = _ids(first, mask.shape, num_words)
        batch = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "labels": np.where(mask, ids, IGNORED)}
        yield _to(batch, device), len(lengths), sum(lengths)


def packed(data: AdapterData, point: Point, num_words: int, device: torch.device) -> Batches:
    """Packs of at most the microbatch's tokens; no sample sees another, and none predicts another's first token."""
    for number, lengths in enumerate(packs(data.lengths, capacity=point.microbatch_tokens)):
        ends = np.cumsum([0, *lengths])
        ids = _ids(number, (1, int(ends[-1])), num_words)
        labels = ids.copy()
        labels[0, ends[:-1]] = IGNORED
        rows = PackedRows.of(lengths, device=device)
        batch = _to({"input_ids": ids, "labels": labels}, device)
        yield batch | {"position_ids": rows.position_ids, "packed_rows": rows}, len(lengths), int(ends[-1])


def _ids(seed: int, shape: Sequence[int], num_words: int) -> Any:
    return np.random.default_rng(seed).integers(0, num_words, tuple(shape))


def _to(arrays: dict[str, Any], device: torch.device) -> dict[str, Any]:
    sent = to_device(list(arrays.values()), device)
    return dict(zip(arrays, sent, strict=True))
