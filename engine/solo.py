"""One adapter trained alone the way everybody does it: transformers, peft, torch's AdamW, one sample at a time.

The other side of `loraplex parity`. It shares no code with the engine but the tokens and the starting weights.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..kernels.nf4_stored import quantize_in_pieces
from ..planner.jobs import Job
from .batch import IGNORED, TokenSource
from .place_weight import Nf4Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SoloRun:
    """What training alone gives."""

    weights: Mapping[str, Tensor]
    """By the names in the whole model, `...q_proj.lora_A.weight`."""
    losses: Sequence[float]
    """Of each step."""


def train_alone(
    folder: Path,
    job: Job,
    tokens: TokenSource,
    start: Mapping[str, Tensor],
    *,
    target_modules: Sequence[str],
    nf4: Nf4Settings | None = None,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> SoloRun:
    """Train a job without dropout from the given weights with stock libraries only.

    With `nf4`, on a base whose layers hold what their weights rounded to 4 bits stand for.
    """
    model = _peft_model(folder, job, target_modules=target_modules, nf4=nf4, dtype=dtype).to(device)
    parameters = {
        name.removeprefix("base_model.model.").replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for name, parameter in parameters.items():
        parameter.data.copy_(start[name])
    settings, num_steps = job.optimizer, len(job.global_batches)
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    scheduler = _scheduler(optimizer, job, num_steps=num_steps)
    losses = []
    for step, batch in enumerate(job.global_batches):
        total = 0.0
        for sample in batch:
            ids, labels = (torch.from_numpy(part).to(device) for part in tokens.tokens(sample))
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
            summed = cross_entropy(wide[:-1], labels[1:], ignore_index=IGNORED, reduction="sum")
            loss = summed / job.target_tokens(step)
            torch.autograd.backward(loss)
            total += loss.item()
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return SoloRun(weights={name: parameter.detach().cpu() for name, parameter in parameters.items()}, losses=losses)


def _peft_model(
    folder: Path, job: Job, *, target_modules: Sequence[str], nf4: Nf4Settings | None, dtype: torch.dtype
) -> Any:
    # peft imports it where it is there, and it then recommends a package for CPUs that nothing here would use.
    getLogger("bitsandbytes").setLevel(ERROR)
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for name, module in base.named_modules():
        if nf4 is not None and isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            rounded = quantize_in_pieces(module.weight.detach(), dtype=dtype, double_quant=nf4.double_quant)
            module.weight.data = rounded.dequantize()
    config = LoraConfig(
        r=job.lora.r,
        lora_alpha=job.lora.lora_alpha,  # type: ignore[arg-type]  # a float works, and r need not divide it
        lora_dropout=0.0,
        target_modules=list(target_modules),
        use_rslora=job.lora.use_rslora,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name it has since changed.
        warnings.simplefilter("ignore", FutureWarning)
        # On a base in half precision adapters are float32, as peft makes them unless told otherwise.
        return get_peft_model(base, config, autocast_adapter_dtype=dtype is torch.bfloat16).train()


def _scheduler(optimizer: torch.optim.Optimizer, job: Job, *, num_steps: int) -> Any:
    from transformers import get_scheduler

    name = job.optimizer.lr_scheduler
    warmup = math.ceil(job.optimizer.warmup_ratio * num_steps)
    return get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=num_steps,
    )
