"""A frozen weight in bitsandbytes' NF4 format (QLoRA), dequantised block by block into one buffer.

Format, read from what bitsandbytes stores: two 4-bit codes a byte, the first in the high half; every `block_size`
weights, in row-major order, share one absolute maximum; the weight is `code[index] * absmax`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .streams import on_device

BUFFER_BYTES = 64 << 20
"""Rows of the weight are dequantised so many bytes at a time: a 4096 x 4096 matrix twice over, a tenth of a 70B one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nf4Weight:
    """A weight `[N, K]` in 4 bits; K is a multiple of `block_size`."""

    packed: Tensor
    """uint8 `[N * K / 2]`."""
    absmax: Tensor
    """float32 `[N * K / block_size]`."""
    code: Tensor
    """float32 `[16]`."""
    block_size: int
    shape: tuple[int, int]
    dtype: torch.dtype
    """What it dequantises to."""

    @classmethod
    def from_bitsandbytes(cls, parameter: Any) -> Nf4Weight:
        """From the `weight` of a `bitsandbytes.nn.Linear4bit`, shared, not copied (nested statistics are unfolded)."""
        try:
            from bitsandbytes.functional import dequantize_blockwise
        except ImportError as error:
            raise ImportError(
                "bitsandbytes is not installed, and an NF4 weight is read through it: pip install bitsandbytes"
            ) from error
        state = getattr(parameter, "quant_state", None)
        if state is None or state.quant_type != "nf4":
            raise ValueError(f"weight is {type(parameter).__name__} without NF4 state: give a Linear4bit's own weight")
        absmax = state.absmax
        if state.nested:
            absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
        n, k = state.shape
        return cls(
            packed=parameter.data.reshape(-1), absmax=absmax.float(), code=state.code.float(),
            block_size=state.blocksize, shape=(n, k), dtype=state.dtype,
        )  # fmt: skip

    def __post_init__(self) -> None:
        n, k = self.shape
        if k % self.block_size or self.packed.numel() * 2 != n * k or self.absmax.numel() * self.block_size != n * k:
            raise ValueError(
                f"packed has {self.packed.numel()} bytes, absmax {self.absmax.numel()} entries, for a {n} x {k} weight "
                f"in blocks of {self.block_size}: give {n * k // 2} and {n * k // self.block_size}, K a whole number "
                "of blocks"
            )

    @property
    def ndim(self) -> int:
        return 2

    @property
    def device(self) -> torch.device:
        return self.packed.device

    def dequantize(self, *, first_row: int = 0, end_row: int | None = None, out: Tensor | None = None) -> Tensor:
        """Rows `first_row` to `end_row`, `[rows, K]`, into `out` where given."""
        n, k = self.shape
        end_row = n if end_row is None else end_row
        if out is None:
            out = torch.empty((end_row - first_row, k), dtype=self.dtype, device=self.device)
        packed = self.packed[first_row * k // 2 : end_row * k // 2]
        absmax = self.absmax[first_row * k // self.block_size : end_row * k // self.block_size]
        if packed.is_cuda:
            from .nf4_kernel import dequantize

            with on_device(out.device):
                dequantize(packed, absmax, self.code, out, block_size=self.block_size)
        else:
            index = torch.stack((packed >> 4, packed & 15), dim=1).view(-1, self.block_size).long()
            out.copy_((self.code[index] * absmax[:, None]).view(out.shape))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Nf4Product:
    """The products with an NF4 weight, some rows of it at a time through one buffer."""

    weight: Nf4Weight

    def whole_weight(self) -> Tensor | None:
        return None

    def add_forward(self, y: Tensor, x: Tensor) -> None:
        for first_row, rows in self._blocks():
            y[:, first_row : first_row + rows.shape[0]].addmm_(x, rows.t())

    def add_backward(self, dx: Tensor, dy: Tensor) -> None:
        for first_row, rows in self._blocks():
            dx.addmm_(dy[:, first_row : first_row + rows.shape[0]], rows)

    def _blocks(self) -> Any:
        """Yields (first row, dense rows); the rows of one turn overwrite those of the last."""
        n, k = self.weight.shape
        height = max(1, min(n, BUFFER_BYTES // (k * self.weight.dtype.itemsize)))
        buffer = torch.empty((height, k), dtype=self.weight.dtype, device=self.weight.device)
        for first_row in range(0, n, height):
            end_row = min(first_row + height, n)
            yield (
                first_row,
                self.weight.dequantize(first_row=first_row, end_row=end_row, out=buffer[: end_row - first_row]),
            )


def joined_nf4(weights: Sequence[Nf4Weight]) -> Nf4Weight:
    """Weights `[N, K]` of one K and block size as one of all their rows, which copies nothing where `split_nf4` made
    them; raises `ValueError` where they differ."""
    first = weights[0]
    if len(weights) == 1:
        return first
    forms = {(weight.shape[1], weight.block_size, weight.dtype) for weight in weights}
    if len(forms) > 1:
        raise ValueError(f"NF4 weights of (K, block_size, dtype) {sorted(map(str, forms))}: join alike ones only")
    return Nf4Weight(
        packed=_joined([weight.packed for weight in weights]),
        absmax=_joined([weight.absmax for weight in weights]),
        code=first.code,
        block_size=first.block_size,
        shape=(sum(weight.shape[0] for weight in weights), first.shape[1]),
        dtype=first.dtype,
    )


def split_nf4(weight: Nf4Weight, num_rows: Sequence[int]) -> tuple[Nf4Weight, ...]:
    """A weight as several of so many rows each, which share its memory."""
    k = weight.shape[1]
    packed = torch.split(weight.packed, [rows * k // 2 for rows in num_rows])
    absmax = torch.split(weight.absmax, [rows * k // weight.block_size for rows in num_rows])
    return tuple(
        replace(weight, packed=own_packed, absmax=own_absmax, shape=(rows, k))
        for own_packed, own_absmax, rows in zip(packed, absmax, num_rows, strict=True)
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    # Slices of one tensor, one after another, are that tensor.
    first, address = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or part.data_ptr() != address:
            return torch.cat(list(parts))
        address += part.nbytes
    return first.as_strided((sum(part.numel() for part in parts),), (1,))


def quantize_nf4(weight: Tensor, *, block_size: int = 64) -> Nf4Weight:
    """Round a weight `[N, K]` to NF4 in plain PyTorch: what tests and machines without bitsandbytes use."""
    n, k = weight.shape
    if k % block_size:
        raise ValueError(f"weight has K = {k}, which is no multiple of block_size = {block_size}: choose another block")
    code = torch.tensor(NF4_CODE, dtype=torch.float32, device=weight.device)
    blocks = weight.detach().float().reshape(-1, block_size)
    absmax = blocks.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    index = torch.bucketize(blocks / absmax[:, None], (code[1:] + code[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return Nf4Weight(
        packed=(index[:, 0] << 4) | index[:, 1], absmax=absmax, code=code,
        block_size=block_size, shape=(n, k), dtype=weight.dtype,
    )  # fmt: skip


NF4_CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 levels: quantiles of a normal distribution, zero among them (QLoRA, arXiv 2305.14314, appendix E)."""
