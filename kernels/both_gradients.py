# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""dA and dB in one launch, where one block of columns holds all of S: two grids side by side, as in `gradients.py`."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .gradients import REGISTERS_BESIDE, gradient_tile, input_gradients, output_gradients
from .layout import Layout
from .reduce import Shares
from .routing import Routing
from .sizes import ceil_div, next_power_of_2
from .tape import Tape
from .tiles import can_use_tma, tile_source


@triton.jit(do_not_specialize=["target_word"])
def both_gradients_kernel(
    x_source, ds_ptr, da_ptr, table_a_ptr, stride_x, k, chunks_a, programs_a,
    dy_source, s_ptr, db_ptr, table_b_ptr, stride_dy, n_1, n_2, n_3, n_4, chunks_b,
    words_ptr, threshold_ptr, token_index_ptr, target_word,
    C: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    DROPOUT: tl.constexpr, TMA_X: tl.constexpr, TMA_DY: tl.constexpr,
):  # fmt: skip
    """The first `programs_a` programs make shares of dA `[C, K]`, the others shares of dB `[N, R]`."""
    program = tl.program_id(0)
    if program < programs_a:
        gradient_tile(
            program % chunks_a, program // chunks_a,
            x_source, ds_ptr, ds_ptr, ds_ptr, da_ptr, table_a_ptr, words_ptr, threshold_ptr, token_index_ptr,
            stride_x, target_word, k, k, k, k, C * k, 1, k,
            C, 0, 0, 0, C, BM, BC, DROPOUT, False, False, TMA_X,
        )  # fmt: skip
    else:
        other = program - programs_a
        gradient_tile(
            other % chunks_b, other // chunks_b,
            dy_source, s_ptr, s_ptr, s_ptr, db_ptr, table_b_ptr, words_ptr, threshold_ptr, token_index_ptr,
            stride_dy, target_word, n_1, n_2, n_3, n_4, n_4 * R, R, 1,
            C, 0, R, 0, R, BM, R, False, False, False, TMA_DY,
        )  # fmt: skip


def both_gradients(
    tape: Tape, shares: tuple[Shares, Shares], dy: Tensor, x: Tensor, s: Tensor, ds: Tensor, a: Tensor,
    *, layout: Layout, routing: Routing, targets: Sequence[int],
) -> None:  # fmt: skip
    """Shares of dA and of dB; in one launch where one mask serves all targets and 64 columns hold their ranks."""
    c, k, r = layout.columns, layout.num_features, layout.padded_rank
    if c > 64 or len(layout.mask_classes(targets, has_dropout=routing.has_dropout)) > 1:
        output_gradients(tape, shares[1], dy, s, layout=layout, routing=routing)
        input_gradients(tape, shares[0], x, ds, a, None, layout=layout, routing=routing, targets=targets)
        return
    config = layout.config.gradient
    (parts_a, tiles_a), (parts_b, tiles_b) = ((share.parts, share.tiles) for share in shares)
    tma_x, tma_dy = config.tma and can_use_tma(x), config.tma and can_use_tma(dy)
    chunks_a, chunks_b = ceil_div(k, 128), layout.chunk_ends(128)[-1]
    programs_a = chunks_a * tiles_a.num_owned
    beside = routing.has_dropout and layout.config.beside
    tape.launch(
        both_gradients_kernel, (programs_a + chunks_b * tiles_b.num_owned,),
        tile_source(x, (config.rows, 64), tma=tma_x), ds, parts_a, tape.fixed(tiles_a.table),
        x.stride(0), k, chunks_a, programs_a,
        tile_source(dy, (config.rows, 64), tma=tma_dy), s, parts_b, tape.fixed(tiles_b.table),
        dy.stride(0), *layout.borders, chunks_b,
        routing.words, routing.thresholds, routing.token_index, tape.words[0],
        constants={
            "C": c, "R": r, "BM": config.rows, "BC": next_power_of_2(c), "DROPOUT": routing.has_dropout,
            "TMA_X": tma_x, "TMA_DY": tma_dy,
        },
        options={
            "num_warps": config.num_warps, "num_stages": config.num_stages,
            "maxnreg": REGISTERS_BESIDE if beside else None,
        },
    )  # fmt: skip
