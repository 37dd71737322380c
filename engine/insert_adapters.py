"""Fresh adapters in the linears of a stage: their first weights, and where the kernels find them."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels.bank import AdapterBank
from ..planner.jobs import Job, LoraSettings
from .adapters import StageAdapter
from .bank_gradients import BankGradients
from .linear_group import LinearGroup
from .targets import targeted


def insert_adapters(
    jobs: Sequence[Job], groups: Sequence[LinearGroup], *, dtype: torch.dtype = torch.float32
) -> tuple[StageAdapter, ...]:
    """Give the linears of a stage every adapter's matrices and return each adapter's share.

    On a GPU the linears read packed copies in the base model's dtype (kernels/bank.py), which each step renews; on a
    CPU they read the parameters themselves.
    """
    parameters = [_parameters(job, groups, dtype=dtype) for job in jobs]
    for group in groups:
        _install(group, jobs, parameters)
    return tuple(_stage_adapter(index, job, groups, parameters[index]) for index, job in enumerate(jobs))


def _parameters(job: Job, groups: Sequence[LinearGroup], *, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    made = {}
    for group in groups:
        for name, linear in zip(group.names, group.linears, strict=True):
            if targeted(name, job.lora.target_modules):
                a, b = _initial(name, linear, lora=job.lora, seed=job.seed, dtype=dtype)
                made[f"{name}.lora_A.weight"], made[f"{name}.lora_B.weight"] = a, b
    return made


def _install(group: LinearGroup, jobs: Sequence[Job], parameters: Sequence[dict[str, nn.Parameter]]) -> None:
    group.lora_a = [[own.get(f"{name}.lora_A.weight") for own in parameters] for name in group.names]
    group.lora_b = [[own.get(f"{name}.lora_B.weight") for own in parameters] for name in group.names]
    weight = group.linears[0].weight
    if weight.device.type != "cuda" or all(matrix is None for matrices in group.lora_a for matrix in matrices):
        return
    group.bank = AdapterBank(
        in_features=group.linears[0].in_features,
        out_features=[linear.out_features for linear in group.linears],
        lora_ranks=[
            [None if matrix is None else job.lora.r for matrix, job in zip(matrices, jobs, strict=True)]
            for matrices in group.lora_a
        ],
        dtype=weight.dtype,
        device=weight.device,
    )


def _stage_adapter(
    index: int, job: Job, groups: Sequence[LinearGroup], parameters: dict[str, nn.Parameter]
) -> StageAdapter:
    banks = [group.bank for group in groups if group.bank is not None]
    if not banks:
        return StageAdapter(job, parameters)
    packed: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    for group in groups:
        for target, name in enumerate(group.names):
            views = None if group.bank is None else group.bank.matrices(target=target, adapter=index)
            if views is not None:
                packed[f"{name}.lora_A.weight"], packed[f"{name}.lora_B.weight"] = views.a, views.b
                sums[f"{name}.lora_A.weight"], sums[f"{name}.lora_B.weight"] = views.grad_a, views.grad_b
    gradients = BankGradients(parameters, adapter=index, banks=banks, packed=packed, sums=sums)
    return StageAdapter(job, parameters, gradients=gradients)


def _initial(
    name: str, linear: nn.Linear, *, lora: LoraSettings, seed: int, dtype: torch.dtype
) -> tuple[nn.Parameter, nn.Parameter]:
    # As PEFT: A uniform within 1 / sqrt(in features), B zero. Drawn per linear from the adapter's seed and the name
    # alone, so that neither the other adapters nor the cut into stages changes it.
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    bound = 1.0 / math.sqrt(linear.in_features)
    a = torch.empty(lora.r, linear.in_features, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    b = torch.zeros(linear.out_features, lora.r, dtype=torch.float32)
    place = linear.weight.device
    return nn.Parameter(a.to(device=place, dtype=dtype)), nn.Parameter(b.to(device=place, dtype=dtype))
