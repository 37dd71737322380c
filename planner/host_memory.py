"""Do the weights of a base model fit into a machine without a GPU? All of its workers share what it has."""

import os
from pathlib import Path

from .errors import PlanError
from .inputs.base_model import BaseModel
from .memory_check import gib
from .model_shapes import ModelShapes

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""What a container may take, under version 2 and 1 of control groups."""


def host_bytes() -> float:
    """Memory of this machine, or of the container this runs in; without limit where the system does not say."""
    try:
        most = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")
    for path in _CGROUP_LIMITS:
        try:
            most = min(most, float(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            # No such group, or "max".
            continue
    return most


def check_weights_fit_host(model: BaseModel, *, num_stages: int, num_replicas: int, free_bytes: float) -> None:
    """Raise PlanError, with numbers and mends, where the frozen weights alone are more than the host has.

    Each replica holds them once, its stages together. What else a run takes is not counted: on a CPU it was never
    measured. Raises JobError for a config.json that lacks a size.
    """
    shapes, in_4bit = ModelShapes.of(model), model.is_in_4bit()
    needed = num_replicas * _weights_bytes(shapes, num_stages=num_stages, load_in_4bit=in_4bit)
    if needed <= free_bytes:
        return
    mends = []
    if num_replicas > 1:
        mends.append(f"pipeline.replicas: 1 would need {gib(needed / num_replicas)}")
    if not in_4bit:
        smaller = num_replicas * _weights_bytes(shapes, num_stages=num_stages, load_in_4bit=True)
        mends.append(f"load_in_4bit: true would need {gib(smaller)}")
    mends.append("or take GPUs, a larger machine or a smaller model")
    copies = f", in {num_replicas} replicas" if num_replicas > 1 else ""
    raise PlanError(
        f"the weights of {model.name} alone would need {gib(needed)}{copies}, but this machine has "
        f"{gib(free_bytes)} of memory and trains on its CPU; {'; '.join(mends)}"
    )


def _weights_bytes(shapes: ModelShapes, *, num_stages: int, load_in_4bit: bool) -> float:
    ends = sum(shapes.end_weight_bytes(num_stages=num_stages))
    return shapes.num_layers * shapes.layer_weight_bytes(load_in_4bit=load_in_4bit) + ends
