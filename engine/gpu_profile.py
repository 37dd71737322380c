"""A CostProfile of a model on the GPU it is measured on, with the raw points that it was fitted to."""

import datetime
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from ..planner.inputs.base_model import BaseModel
from ..planner.jobs import LoraSettings
from ..traces.costs import CostProfile, CostTerms, GraphCosts, Kernels, LinkCosts, MemoryCosts, PassCosts
from ..traces.counted import counted
from ..traces.fit import CostPoints, fit_terms
from ..traces.profile_fit import fit_profile
from ..traces.profiles import own_name
from .device_memory import DeviceBytes, sharing_processes
from .measure import measure_link
from .measure_points import Measured, measure_points
from .message import Wire
from .model import read_config
from .profile_conditions import DEFAULT_LORAS, NUM_CONDITIONS, draw_conditions
from .profile_memory import memory_costs
from .stage_kinds import Setup
from .transport import Transport
from .weight_source import WeightSource

_LINK_TOKENS = (1, 256, 1024, 4096, 8192)
_BLANK = PassCosts(linears={"fused": CostTerms()})


def _nobody(text: str) -> None:
    """Does not listen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GpuProfile:
    """What worker 0 writes down."""

    profile: CostProfile
    points: pd.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRequest:
    """What to measure: all of it has a default but the model."""

    num_stages: int = 1
    capacity_tokens: int = 16384
    depth: int = 2
    """Layers that stand for all; stages of so many and of twice as many are measured."""
    loras: tuple[LoraSettings, ...] = DEFAULT_LORAS
    num_conditions: int = NUM_CONDITIONS
    seconds: float = 20.0
    command: str = ""
    tell: Callable[[str], None] = _nobody
    """Hears where the time goes."""


def measure_gpu_profile(
    base: BaseModel, folder: Path, transport: Transport, request: GpuRequest, *, device: torch.device
) -> GpuProfile:
    """One worker's part; what worker 0 returns counts. Workers that share a GPU keep it busy together, as in a run."""
    config = read_config(folder)
    dtype = getattr(config, "dtype", None) or torch.float32
    setup = Setup(
        folder=folder,
        weights=WeightSource.of(base),
        device=device,
        loras=request.loras,
        conditions=draw_conditions(
            request.loras, capacity_tokens=request.capacity_tokens, count=request.num_conditions
        ),
        transport=transport,
        num_workers=request.num_stages,
        seconds=request.seconds,
        tell=request.tell,
    )
    depths = depths_of(base.num_layers, depth=request.depth)
    measured = measure_points(setup, depths=depths)
    wire = Wire(hidden_size=config.hidden_size, dtype=dtype, device=device)
    link_ms = measure_link(transport, wire, num_tokens=_LINK_TOKENS) if request.num_stages > 1 else []
    # Fused where the kernels run; elsewhere the engine computes LoRA in plain PyTorch.
    kernels: Kernels = "fused" if device.type == "cuda" else "eager"
    profile = CostProfile(
        name=own_name(f"{model_slug(base)}-{device_slug(device)}-measured"),
        origin="measured",
        source=_source(base, request, depths=depths, device=device, num_points=len(measured.table)),
        num_layers=base.num_layers,
        forward=_BLANK,
        backward=_BLANK,
        graphs=GraphCosts(max_tokens=measured.graph_tokens()),
        link=link_costs(link_ms, wire),
        memory=_memory(measured, wire, device=device),
    )
    fitted = fit_profile(measured.table, kernels=kernels)
    return GpuProfile(profile=fitted.onto(profile), points=measured.table)


def depths_of(num_layers: int, *, depth: int) -> tuple[int, ...]:
    """Two depths of stage, as far as the model has layers."""
    return tuple(dict.fromkeys((min(depth, num_layers), min(2 * depth, num_layers))))


def shallow(base: BaseModel, *, depth: int) -> BaseModel:
    """The base model with no more layers than are measured, where its weights are drawn; else itself.

    Every stage is cut from a description of the whole model, which takes seconds to make for 80 layers.
    """
    if not base.random_weights:
        return base
    num_layers = max(depths_of(base.num_layers, depth=depth))
    return replace(base, num_layers=num_layers, config={**base.config, "num_hidden_layers": num_layers})


def model_slug(base: BaseModel) -> str:
    """A model's name as it stands in file names, such as llama-3.1-8b."""
    return Path(base.name).name.removesuffix(".json")


def device_slug(device: torch.device) -> str:
    """A GPU's name as it stands in file names, such as nvidia-h200."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def link_costs(ms: Sequence[float], wire: Wire) -> LinkCosts:
    """Latency and bandwidth from half round trips of `_LINK_TOKENS`; nothing of either where none was measured."""
    per_token = float(wire.hidden_size * wire.dtype.itemsize)
    if not ms:
        return LinkCosts(bytes_per_token=per_token)
    terms = fit_terms(CostPoints.of(tokens=list(_LINK_TOKENS), ms=ms, adapters=0.0))
    rate = per_token / terms.per_token_ms if terms.per_token_ms else float("inf")
    return LinkCosts(latency_ms=terms.fixed_ms, bytes_per_ms=rate, bytes_per_token=per_token)


def _memory(measured: Measured, wire: Wire, *, device: torch.device) -> MemoryCosts:
    boundary = float(wire.hidden_size * wire.dtype.itemsize)
    if device.type != "cuda":
        return MemoryCosts(boundary_bytes_per_token=boundary)
    held = DeviceBytes.of(device, num_processes=sharing_processes())
    return memory_costs(measured, device=held, boundary_bytes_per_token=boundary)


def _source(
    base: BaseModel, request: GpuRequest, *, depths: Sequence[int], device: torch.device, num_points: int
) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    command = request.command or shlex.join(["loraplex", *sys.argv[1:]])
    versions = f"torch {torch.__version__}, triton {_triton_version()}"
    # Of a folder the last part: where it lies says nothing of the model.
    model = Path(base.name).name if Path(base.name).exists() else base.name
    return (
        f"{name}, {counted(request.num_stages, 'process')}, {versions}, {datetime.date.today().isoformat()}; "
        f"stages of {' and '.join(map(str, depths))} layers of {model} stand for all {base.num_layers}, "
        f"microbatches of up to {request.capacity_tokens} tokens, {num_points} points; {command}"
    )


def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
