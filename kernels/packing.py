"""Adapters' matrices side by side in the activations' dtype, and their gradients apart again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .layout import Layout


def pack_a(matrices: Sequence[Tensor | None], *, layout: Layout, like: Tensor) -> Tensor:
    """`[adapters * rows_of_a, K]` from `[r, K]` each, adapter by adapter, in it target by target, then zeros."""
    k, r, num_targets = layout.num_features, layout.padded_rank, layout.num_targets
    rows = [_padded(matrix, (r, k), like) for matrix in matrices]
    if layout.rows_of_a > layout.columns:
        filler = like.new_zeros((layout.rows_of_a - layout.columns, k))
        for adapter in range(layout.num_adapters, 0, -1):
            rows.insert(adapter * num_targets, filler)
    return _side_by_side(rows, like)


def pack_b(matrices: Sequence[Tensor | None], *, layout: Layout, like: Tensor) -> Tensor:
    """`[adapters * N, R]` from `[N_t, r]` each, in the same order."""
    r = layout.padded_rank
    sizes = layout.out_features * layout.num_adapters
    rows = [_padded(matrix, (n, r), like) for matrix, n in zip(matrices, sizes, strict=True)]
    return _side_by_side(rows, like)


def unpack_a(grad: Tensor, shapes: Sequence[torch.Size | None], *, num_targets: int) -> list[Tensor | None]:
    """Views of `[adapters, C, K]`, one per matrix."""
    rows = grad.view(-1, grad.shape[1] // num_targets, grad.shape[2])
    return [None if shape is None else rows[i, : shape[0]] for i, shape in enumerate(shapes)]


def unpack_b(grad: Tensor, shapes: Sequence[torch.Size | None], *, sizes: tuple[int, ...]) -> list[Tensor | None]:
    """Views of `[adapters, N, R]`, one per matrix; `sizes` holds the N of each target."""
    rows = grad.view(-1, grad.shape[2])
    grads: list[Tensor | None] = []
    first = 0
    for shape, n in zip(shapes, sizes * grad.shape[0], strict=True):
        grads.append(None if shape is None else rows[first : first + n, : shape[1]])
        first += n
    return grads


def _padded(matrix: Tensor | None, shape: tuple[int, int], like: Tensor) -> Tensor:
    """The matrix with zeros below and to its right."""
    if matrix is None:
        return like.new_zeros(shape)
    if matrix.shape == shape:
        return matrix
    return functional.pad(matrix, (0, shape[1] - matrix.shape[1], 0, shape[0] - matrix.shape[0]))


def _side_by_side(matrices: list[Tensor], like: Tensor) -> Tensor:
    """One matrix as it is where it can be read in place, else one concatenation and one cast."""
    if any(matrix.dtype != matrices[0].dtype for matrix in matrices):
        matrices = [matrix.to(like.dtype) for matrix in matrices]
    whole = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
    return whole.detach().to(like.dtype).contiguous()
