"""Which device a worker computes on."""

import os

import torch

from ..planner.gpus import gpu_of
from ..traces.errors import InputError
from .flash_attention import check_attention

DEVICES = ("auto", "cpu", "cuda")


def check_device(name: str) -> None:
    """Raise InputError, before any process starts, for a device that is unknown or not here."""
    if name not in DEVICES:
        raise InputError(f"device '{name}' is unknown; choose one of {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "finds no GPU"
        raise InputError(f"device cuda: torch {torch.__version__} {why}; choose cpu, or install torch for your GPU")


def resolved_device(name: str) -> str:
    """cpu or cuda, where `auto` leaves it open; checked as by `check_device`."""
    check_device(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def choose_device(name: str) -> torch.device:
    """This process's device: `auto` takes a GPU where there is one. It becomes torch's current device.

    torchrun's LOCAL_RANK and LOCAL_WORLD_SIZE say which of a machine's GPUs; where there are fewer than workers,
    workers next to each other share one. Raises InputError, for an attention too that the GPU cannot have.
    """
    # Ask the driver's books, which does not start CUDA: what is said below must be said before.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    check_device(name)
    num_gpus = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if not num_gpus:
        return torch.device("cpu")
    place, num_local = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_local <= num_gpus:
        # Streams that share a hardware queue wait for each other: over NCCL a worker has nine, and queues are eight.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    device = torch.device("cuda", gpu_of(place, num_workers=num_local, num_gpus=num_gpus))
    torch.cuda.set_device(device)
    check_attention(device)
    return device
