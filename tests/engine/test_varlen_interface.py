"""A model of transformers with our attention computes packed samples as it computes each alone with its own."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from loraplex.engine.batch import PackedRows
from loraplex.engine.varlen_interface import VARLEN, register_varlen, varlen_attention
from loraplex.traces.errors import InputError

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
LENGTHS = (1, 5, 9, 3)


def model_with(attention: str, config: Any) -> Any:
    """Fresh, with random weights. A model notes its attention in its config, so each needs its own."""
    own = copy.deepcopy(config)
    return AutoModelForCausalLM.from_config(own, attn_implementation=attention).eval()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        MistralConfig(**SIZES, sliding_window=4),
        # windows from the second layer on
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ],
    ids=lambda config: config.model_type,
)
def test_packed_samples_come_out_as_each_alone(config: Any) -> None:
    torch.manual_seed(0)
    plain, ours = (model_with(attention, config) for attention in ("sdpa", register_varlen()))
    ours.load_state_dict(plain.state_dict())
    ids = torch.randint(0, 50, (1, sum(LENGTHS)))
    rows = PackedRows.of(LENGTHS)
    with torch.no_grad():
        found = ours(input_ids=ids, position_ids=rows.position_ids, packed_rows=rows, use_cache=False).logits[0]
        alone = [plain(sample[None]).logits[0] for sample in torch.split(ids[0], list(LENGTHS))]
    torch.testing.assert_close(found, torch.cat(alone))


def test_a_model_that_is_not_told_the_samples_says_what_to_call_it_with() -> None:
    model = model_with(register_varlen(), LlamaConfig(**SIZES))
    with pytest.raises(InputError, match=rf"{VARLEN} was not told the samples; .*packed_rows=PackedRows.of\(lengths\)"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.int64))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a layer may ask of attention."""

    num_rows: int = 1
    num_tokens: int = 4
    num_keys: int = 4
    others: tuple[tuple[str, Any], ...] = ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call(num_rows=2), "got 2 rows of 4 tokens, 4 of keys, and packed_rows of 4; pack all samples into one row"),
        (Call(num_tokens=5, num_keys=5), "got 1 rows of 5 tokens, 5 of keys, and packed_rows of 4"),
        (Call(num_keys=9), "9 of keys, and packed_rows of 4; .* use_cache=False"),
        (Call(others=(("dropout", 0.1),)), "knows no dropout; choose another attn_implementation"),
        (Call(others=(("softcap", 50.0), ("s_aux", torch.ones(4)))), "knows no softcap, s_aux;"),
        (Call(others=(("attention_mask", torch.ones(1, 1, 4, 4)),)), "knows no attention_mask;"),
    ],
)
def test_what_it_would_compute_wrongly_is_refused(call: Call, message: str) -> None:
    query = torch.randn(call.num_rows, 4, call.num_tokens, 8)
    key = torch.randn(call.num_rows, 2, call.num_keys, 8)
    asked: dict[str, Any] = {"attention_mask": None, "packed_rows": PackedRows.of((1, 3)), "scaling": 0.3}
    with pytest.raises(InputError, match=message):
        varlen_attention(nn.Identity(), query, key, key, **(asked | dict(call.others)))


def test_what_is_asked_for_as_usual_is_computed() -> None:
    query, key = torch.randn(1, 4, 4, 8), torch.randn(1, 2, 4, 8)
    options: dict[str, Any] = {"dropout": 0.0, "sliding_window": None, "position_ids": None, "use_cache": False}
    output, weights = varlen_attention(
        nn.Identity(), query, key, key, None, packed_rows=PackedRows.of((1, 3)), scaling=0.3, **options
    )
    assert output.shape == (1, 4, 4, 8)
    assert weights is None
