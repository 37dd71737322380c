"""How the adapters of one call are laid side by side, and the block sizes its passes run with.

Every (adapter, target) pair gets `padded_rank` columns, zeros where its own r is smaller: offsets are then arithmetic
and no table has to travel to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .sizes import ceil_div

MAX_TARGETS = 4
"""The borders of so many linears travel as kernel arguments; q/k/v and gate/up need three and two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassConfig:
    """Block sizes of one pass."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    tma: bool = True
    """Read through the tensor memory accelerator where the GPU and the shape allow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmConfig:
    """Block sizes of the frozen product that carries the LoRA product with it."""

    rows: int
    columns: int
    depth: int
    bands: int
    """Row blocks that are walked together, for the L2 cache."""
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConfig:
    """Block sizes of the passes; one program of `gradient` walks over `gradient_rows` or fewer, `rows` at a time."""

    shrink: PassConfig
    expand: PassConfig
    gradient: PassConfig
    gradient_rows: int
    early: bool
    """Start a product while the pass that writes its S still runs (programmatic dependent launch)."""
    beside: bool
    """Run the adapters' gradients on a second stream beside the frozen product."""
    gemm: GemmConfig | None
    """None: the library's own GEMM adds the frozen product to the LoRA product."""
    min_programs: int
    """The skinny product splits its inner sum until so many programs run."""
    min_drawing_programs: int
    """The same where it draws dropout: then arithmetic, not memory, wants more warps."""
    min_gradient_programs: int
    room_bytes: int = 0
    """Shared memory that a frozen product leaves on a multiprocessor; a skinny product that takes no more lives beside
    the one after it. 0: takes what it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskClass:
    """Columns of S that see the same dropout mask."""

    first_column: int
    end_column: int
    position: int
    """Of the first of its targets among those of the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Shapes of one call: K, the N of each target, and the columns of S."""

    num_adapters: int
    num_features: int
    out_features: tuple[int, ...]
    padded_rank: int
    config: KernelConfig

    @property
    def num_targets(self) -> int:
        return len(self.out_features)

    @property
    def columns(self) -> int:
        """Width C of S: the ranks of all targets side by side."""
        return self.num_targets * self.padded_rank

    @property
    def rows_of_a(self) -> int:
        """Rows of an adapter's packed A: `columns`, zeros up to a power of two, so that one tile holds them all."""
        return 1 << (self.columns - 1).bit_length()

    @property
    def total_out_features(self) -> int:
        return sum(self.out_features)

    @property
    def borders(self) -> tuple[int, int, int, int]:
        """End column of each target, the last repeated up to `MAX_TARGETS`."""
        ends = [sum(self.out_features[: target + 1]) for target in range(self.num_targets)]
        one, two, three, four = ends + [ends[-1]] * (MAX_TARGETS - len(ends))
        return one, two, three, four

    def chunk_ends(self, width: int) -> tuple[int, ...]:
        """For each target the number of chunks of at most `width` columns up to its end (`draws.locate`)."""
        ends, total = [], 0
        for n in self.out_features:
            total += ceil_div(n, width)
            ends.append(total)
        return tuple(ends)

    def shrink_splits(self, num_programs: int, *, width: int, draws: bool) -> int:
        """Shares of a sum over `width`, a power of two, so that enough programs run; a share is 512 or more."""
        most = max(1, width // 512)
        wanted = self.config.min_drawing_programs if draws else self.config.min_programs
        return _power_of_two_within(ceil_div(wanted, max(num_programs, 1)), most)

    def shrink_stages(self, stage_bytes: int, *, draws: bool) -> int:
        """Tiles that are loaded ahead: as many as tuned, or as fit beside a product; drawing takes two at a time."""
        most = self.config.shrink.num_stages * (1 if draws else 2)
        if not self.config.room_bytes:
            return most
        return max(2, min(most, self.config.room_bytes // stage_bytes))

    def gradient_rows(self, num_rows: int, *, width: int) -> int:
        """Rows that one program of a gradient's pass walks over: as many as leave `min_gradient_programs`."""
        rows = self.config.gradient_rows
        while rows > 256 and ceil_div(num_rows, rows) * ceil_div(width, 128) < self.config.min_gradient_programs:
            rows //= 2
        return rows

    def mask_classes(self, targets: Sequence[int], *, has_dropout: bool) -> tuple[MaskClass, ...]:
        """Runs of neighbouring targets with one mask; without dropout all targets are one."""
        if not has_dropout:
            return (MaskClass(first_column=0, end_column=self.columns, position=0),)
        classes: list[MaskClass] = []
        for position, target in enumerate(targets):
            first, end = position * self.padded_rank, (position + 1) * self.padded_rank
            if classes and targets[classes[-1].position] == target:
                last = classes.pop()
                classes.append(replace(last, end_column=end))
            else:
                classes.append(MaskClass(first_column=first, end_column=end, position=position))
        return tuple(classes)


def _power_of_two_within(wanted: int, most: int) -> int:
    """The largest power of two that is at most both (and at least 1)."""
    return 1 << (max(1, min(wanted, most)).bit_length() - 1)


def padded_rank(lora_ranks: Sequence[int]) -> int:
    """The power of two, at least 16 (the tensor cores' least), that holds every r of the call."""
    return max(16, 1 << (max(lora_ranks) - 1).bit_length())


DEFAULT_CONFIG = KernelConfig(
    shrink=PassConfig(rows=32, columns=64, num_warps=2, num_stages=4),
    expand=PassConfig(rows=64, columns=128, num_warps=4, num_stages=2),
    gradient=PassConfig(rows=64, columns=128, num_warps=4, num_stages=3),
    gradient_rows=2048,
    gemm=None,
    early=False,
    beside=False,
    min_programs=128,
    min_drawing_programs=512,
    min_gradient_programs=256,
)
"""What any GPU can run: under 100 KiB of shared memory, no Hopper feature."""
