"""The reference is read against independent arithmetic: PEFT's own line, float64 loops, and counting."""

import torch

from loraplex.kernels import reference
from loraplex.kernels.routing import Routing, Segment

torch.set_num_threads(1)


def build(num_rows, lengths, *, scaling=None, dropout=None, first_row=0, **more):
    segments, row = [], first_row
    for adapter, length in enumerate(lengths):
        if length:
            segments.append(Segment(first_row=row, num_rows=length, adapter=adapter))
        row += length
    count = len(lengths)
    return Routing.build(
        num_rows=num_rows,
        segments=segments,
        scaling=scaling or [2.0] * count,
        dropout=dropout or [0.0] * count,
        seeds=more.pop("seeds", list(range(count))),
        global_batches=more.pop("global_batches", [0] * count),
        **more,
    )


def test_one_float32_adapter_without_dropout_is_bitwise_what_peft_computes():
    torch.manual_seed(0)
    x, w, bias = torch.randn(9, 12), torch.randn(7, 12), torch.randn(7)
    a, b = torch.randn(4, 12), torch.randn(7, 4)
    out = reference.multi_lora_linear(x, w, bias, [a], [b], routing=build(9, [9]), target=0)
    linear = torch.nn.functional.linear
    assert torch.equal(out, linear(x, w, bias) + linear(linear(x, a), b) * 2.0)
