"""The reference is read against independent arithmetic: PEFT's own line, float64 loops, and counting."""

import torch

from loraplex.kernels import reference
from loraplex.kernels.routing import Routing, Segment

torch.set_num_threads(1)


def test_one_float32_adapter_without_dropout_is_bitwise_what_peft_computes() -> None:
    torch.manual_seed(0)
    x, w, bias = torch.randn(9, 12), torch.randn(7, 12), torch.randn(7)
    a, b = torch.randn(4, 12), torch.randn(7, 4)
    routing = Routing.build(
        num_rows=9, segments=[Segment(first_row=0, num_rows=9, adapter=0)], scaling=[2.0], dropout=[0.0], seeds=[0],
        global_batches=[0],
    )  # fmt: skip
    out = reference.multi_lora_linear(x, w, bias, [a], [b], routing=routing, target=0)
    linear = torch.nn.functional.linear
    assert torch.equal(out, linear(x, w, bias) + linear(linear(x, a), b) * 2.0)
