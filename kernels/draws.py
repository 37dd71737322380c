# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What every fused kernel shares on the device: the dropout generator and the split of N among targets."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix(word):
    """lowbias32, as `reference._mix`: uint32 in, uint32 out."""
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    return word ^ (word >> 16)


@triton.jit
def row_keys(word_0, word_1, token_index_ptr, o_row, m_row, target_word):
    """Two uint32 `[BM]` a row, from the adapter's words, the token's index and the target."""
    token = tl.load(token_index_ptr + o_row, mask=m_row, other=0).to(tl.uint32)
    key = target_word.to(tl.uint32)
    return mix(mix(token ^ word_0.to(tl.uint32)) + key), mix(mix(token + word_1.to(tl.uint32)) ^ key)


@triton.jit
def draw_words(key_0, key_1, o_pair):
    """uint32 `[BM, pairs]`: the low half decides feature f, the high half feature f + 64 (`reference._draw`)."""
    word = key_0[:, None] + (o_pair.to(tl.uint32) * 0x9E3779B9)[None, :]
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15) ^ key_1[:, None]) * 0x846CA68B
    return word ^ (word >> 16)


@triton.jit
def keep_low(word, threshold):
    return (word << 16) >= (threshold.to(tl.uint32) << 16)


@triton.jit
def keep_high(word, threshold):
    return word >= (threshold.to(tl.uint32) << 16)


@triton.jit
def locate(i_chunk, n_1, n_2, n_3, n_4, CHUNK: tl.constexpr):
    """The (target, first column, end column) of chunk `i_chunk`, where target t owns the columns from n_t to n_t+1.

    Chunks never hold columns of two targets, wherever the borders lie.
    """
    e_1 = tl.cdiv(n_1, CHUNK)
    e_2 = e_1 + tl.cdiv(n_2 - n_1, CHUNK)
    e_3 = e_2 + tl.cdiv(n_3 - n_2, CHUNK)
    target = (i_chunk >= e_1).to(tl.int32) + (i_chunk >= e_2).to(tl.int32) + (i_chunk >= e_3).to(tl.int32)
    before = tl.where(target == 0, 0, tl.where(target == 1, e_1, tl.where(target == 2, e_2, e_3)))
    first = tl.where(target == 0, 0, tl.where(target == 1, n_1, tl.where(target == 2, n_2, n_3)))
    end = tl.where(target == 0, n_1, tl.where(target == 1, n_2, tl.where(target == 2, n_3, n_4)))
    start = first + (i_chunk - before) * CHUNK
    return target, start, tl.minimum(start + CHUNK, end)


def target_word(target: int) -> int:
    """The target's part of the dropout key, as a signed 32-bit number (`reference._draw`)."""
    word = (target * 0x9E3779B9 + 0x7F4A7C15) & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
