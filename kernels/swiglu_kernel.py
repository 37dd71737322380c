# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""SwiGLU on the GPU: one pass forward, one backward that writes both halves' gradients side by side."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import launch
from .sizes import ceil_div
from .streams import on_device
from .tape import Tape

BLOCK = 2048
"""Columns a program: 16 elements of 128 lanes, two 16-byte loads of each half."""


@triton.jit
def forward_kernel(gate_up_ptr, y_ptr, stride, SIZE: tl.constexpr, B: tl.constexpr):
    """y `[T, I]` = silu(gate) * up of one block of one row."""
    # [B]
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * B + tl.arange(0, B)
    p_gate = gate_up_ptr + row * stride + col
    gate = tl.load(p_gate, mask=col < SIZE, other=0.0).to(tl.float32)
    up = tl.load(p_gate + SIZE, mask=col < SIZE, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * SIZE + col, y.to(y_ptr.dtype.element_ty), mask=col < SIZE)


@triton.jit
def backward_kernel(
    dy_ptr, gate_up_ptr, dgate_up_ptr, y_ptr, stride_dy, stride,
    SIZE: tl.constexpr, B: tl.constexpr, WRITE_Y: tl.constexpr,
):  # fmt: skip
    """dgate_up `[T, 2 I]` of one block of one row; WRITE_Y: and y once more, with the bits of the forward."""
    # [B]
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * B + tl.arange(0, B)
    mask = col < SIZE
    dy = tl.load(dy_ptr + row * stride_dy + col, mask=mask, other=0.0).to(tl.float32)
    p_gate = gate_up_ptr + row * stride + col
    gate = tl.load(p_gate, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(p_gate + SIZE, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    dgate = dy * up * s * (1.0 + gate * (1.0 - s))
    dup = dy * gate * s
    p_dgate = dgate_up_ptr + row * 2 * SIZE + col
    tl.store(p_dgate, dgate.to(dgate_up_ptr.dtype.element_ty), mask=mask)
    tl.store(p_dgate + SIZE, dup.to(dgate_up_ptr.dtype.element_ty), mask=mask)
    if WRITE_Y:
        y = gate * s * up
        tl.store(y_ptr + row * SIZE + col, y.to(y_ptr.dtype.element_ty), mask=mask)


def forward(gate_up: Tensor) -> Tensor:
    """y `[T, I]`, contiguous, of `gate_up [T, 2 I]` with unit last stride."""
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        with on_device(y.device):
            launch(
                forward_kernel, _grid(y), gate_up, y, gate_up.stride(0), device=y.device,
                constants={"SIZE": size, "B": BLOCK}, options={"num_warps": 4},
            )  # fmt: skip
    return y


def backward(dy: Tensor, gate_up: Tensor) -> Tensor:
    """dgate_up `[T, 2 I]`, contiguous."""
    dgate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    if dgate_up.numel():
        with on_device(dy.device):
            launch(
                backward_kernel, _grid(dy), dy, gate_up, dgate_up, dgate_up, dy.stride(0), gate_up.stride(0),
                device=dy.device, constants={"SIZE": dy.shape[1], "B": BLOCK, "WRITE_Y": False},
                options={"num_warps": 4},
            )  # fmt: skip
    return dgate_up


def forward_pass(tape: Tape, gate_up: Tensor, y: Tensor) -> None:
    """`forward` into `y [T, I]`, contiguous."""
    tape.launch(
        forward_kernel, _grid(y), gate_up, y, gate_up.stride(0), constants={"SIZE": y.shape[1], "B": BLOCK},
        options={"num_warps": 4},
    )  # fmt: skip


def backward_pass(tape: Tape, dy: Tensor, gate_up: Tensor, dgate_up: Tensor, y: Tensor | None) -> None:
    """`backward` into `dgate_up [T, 2 I]`, and y `[T, I]` in passing, both contiguous."""
    tape.launch(
        backward_kernel, _grid(dy),
        dy, gate_up, dgate_up, dgate_up if y is None else y, dy.stride(0), gate_up.stride(0),
        constants={"SIZE": dy.shape[1], "B": BLOCK, "WRITE_Y": y is not None}, options={"num_warps": 4},
    )  # fmt: skip


def _grid(y: Tensor) -> tuple[int, int]:
    return y.shape[0], ceil_div(y.shape[1], BLOCK)


class FusedSwiglu(torch.autograd.Function):
    """y of gate_up; saves gate_up alone."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return forward(gate_up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return backward(dy if dy.stride(-1) == 1 else dy.contiguous(), gate_up)


def fused_swiglu(gate_up: Tensor) -> Tensor:
    """`swiglu` by the kernels; arguments are taken as checked."""
    y: Tensor = FusedSwiglu.apply(gate_up if gate_up.stride(-1) == 1 else gate_up.contiguous())  # type: ignore[no-untyped-call]
    return y
