"""What `bench train` measures: systems, workloads, and the question put to one process. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from ..traces.costs import RecomputeMode
from ..traces.errors import InputError

SYSTEMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "peft-padded": "transformers + PEFT as most people run it: batches of 4 samples padded to the longest, SDPA "
        "with a mask, bf16 base, float32 adapters under bf16 autocast (Trainer with bf16=True), adapter after adapter",
        "peft-packed": "packed microbatches, variable-length attention, bf16 base, PEFT's float32 adapters",
        "peft-packed-autocast": "the same under bf16 autocast, as Trainer with bf16=True",
        "peft-packed-bf16": "the same with bf16 adapters (autocast_adapter_dtype=False)",
        "peft-packed-bf16-liger": "the same with Liger's RMSNorm, rotary embedding, SwiGLU and fused head and loss",
        "unsloth": "Unsloth's model and kernels, packed microbatches",
        "frozen": "transformers without adapters: forward and backward through all layers down to the embeddings",
        "frozen-liger": "the same with Liger",
        "ours": "this engine: all adapters together, float32 adapters",
        "ours-targets": "this engine with a quarter of each sample's tokens learned: head and loss on those alone",
        "ours-adapters-off": "this engine, one adapter of r = 1 on the first layer's q_proj: all but frozen, forward "
        "and backward through all layers",
    }
)
"""Every system, in the order in which they are measured, and what it is."""
OURS: Final = ("ours", "ours-targets", "ours-adapters-off")
WITHOUT_ADAPTERS: Final = ("frozen", "frozen-liger", "ours-adapters-off")
"""Dropout changes nothing for these, so they are measured without."""
PADDED: Final = ("peft-padded",)
"""These attend under a mask, whatever the others use."""

WORKLOADS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "mix": ("gsm8k", "dialogsum", "scitldr_a", "qmsum_span"),
        "dialogsum": ("dialogsum",) * 4,
    }
)
"""The data set of each adapter."""
MAX_TOKENS: Final = 8192
"""Longer samples are cut."""
TARGET_SHARE: Final = 0.25
"""Part of a sample's tokens that `ours-targets` learns: its end, as where only answers are learned."""
LORA_RANK: Final = 16
RECORD: Final = "record "
"""Begins every line that a measuring process has to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One figure to measure."""

    workload: str
    dropout: float
    num_adapters: int
    microbatch_tokens: int
    global_batch_size: int
    """Samples of each adapter to an optimizer step."""


NAMED: Final = ("system", "attention", "recompute", *(field.name for field in fields(Point)))
"""What a record is told from others by: its variant and its point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one process measures: one system at several points, one after another."""

    system: str
    model: str
    random_weights: bool
    load_in_4bit: bool
    """Hold the layers' linears in NF4."""
    num_layers: int | None
    device: str
    seconds: float
    """About how long each point is measured, once warm."""
    recompute: RecomputeMode
    """What our engine makes again in the backward; the peers recompute nothing."""
    attention: str
    """torch or flash, in everything that is packed."""
    lengths_folder: str | None
    """Folder of NAME.csv with the data sets' own lengths; None draws from the shipped tables."""
    points: tuple[Point, ...]

    def named(self, point: Point) -> dict[str, Any]:
        """The beginning of a record: the variant, and what was measured of it."""
        return self.variant() | asdict(point)

    def variant(self) -> dict[str, str]:
        """System, attention (torch, flash, or sdpa under a mask) and what is recomputed: rows that differ in one stand
        side by side.
        """
        attention = "sdpa" if self.system in PADDED else self.attention
        return {"system": self.system, "attention": attention, "recompute": self.recompute}

    def to_json(self) -> str:
        """As the process is told on its command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Question":
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "points": tuple(Point(**point) for point in fields["points"])})


def points_of(
    system: str,
    *,
    workloads: tuple[str, ...],
    dropouts: tuple[float, ...],
    microbatch_tokens: int,
    global_batch_size: int,
) -> tuple[Point, ...]:
    """Side by side: every workload with every dropout that makes a difference to the system."""
    kinds = (0.0,) if system in WITHOUT_ADAPTERS else dropouts
    return tuple(
        Point(
            workload=workload,
            dropout=dropout,
            num_adapters=len(WORKLOADS[workload]),
            microbatch_tokens=microbatch_tokens,
            global_batch_size=global_batch_size,
        )
        for workload in workloads
        for dropout in kinds
    )


def growth_points(*, microbatch_tokens: int, dropout: float) -> tuple[Point, ...]:
    """Growth: our engine over the number of adapters, and over the size of microbatches (dialogsum's lengths).

    Fewer adapters have larger global batches, so that a lone one fills its microbatches too.
    """
    adapters = [(count, microbatch_tokens) for count in (1, 4, 16, 64)]
    sizes = [(4, size) for size in (microbatch_tokens // 4, microbatch_tokens // 2, 2 * microbatch_tokens)]
    return tuple(
        Point(
            workload="dialogsum",
            dropout=dropout,
            num_adapters=count,
            microbatch_tokens=size,
            global_batch_size=max(16, 256 // count),
        )
        for count, size in adapters + sizes
    )


def check_names(given: tuple[str, ...], *, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The names given, all of them where none is. Raises InputError for one that is unknown."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"{option} {', '.join(unknown)} is unknown; choose from {', '.join(known)}")
    return given or known
