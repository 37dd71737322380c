"""The drop-in against PEFT itself, on a small Llama."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypedDict, Unpack

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from loraplex.kernels.peft_patch import patch_peft, route, unpatch_peft
from loraplex.kernels.routing import Routing, Segment

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Options(TypedDict, total=False):
    """The options of `LoraConfig` that these tests set."""

    r: int
    lora_alpha: int
    target_modules: list[str]
    lora_dropout: float
    init_lora_weights: bool
    use_rslora: bool
    use_dora: bool
    bias: Literal["none", "all", "lora_only"]
    rank_pattern: dict[str, int]
    lora_bias: bool


def base_model() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, attention_bias=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def peft_model(device: str = "cpu", **more: Unpack[Options]) -> peft.PeftModel:
    settings: Options = {
        "r": 4, "lora_alpha": 12, "target_modules": LINEARS, "lora_dropout": 0.0, "init_lora_weights": False, **more,
    }  # fmt: skip
    return peft.get_peft_model(base_model(), peft.LoraConfig(**settings)).to(device)


def tokens(device: str = "cpu") -> Tensor:
    return torch.arange(22, device=device).view(2, 11) * 3 % 50


def loss_and_gradients(model: nn.Module, device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(input_ids=tokens(device), labels=tokens(device))
    out.loss.backward()
    return out.logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("more", [
    {}, {"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 7}}, {"target_modules": ["down_proj"]},
], ids=str)  # fmt: skip
def test_outputs_and_gradients_are_pefts(more: Options, device: str) -> None:
    model = peft_model(device, **more)
    logits, grads = loss_and_gradients(model, device)
    summary = patch_peft(model)
    fused_logits, fused_grads = loss_and_gradients(model, device)
    assert summary.left == {}
    assert len(summary.fused) == 2 * (7 if "target_modules" not in more else 1)
    torch.testing.assert_close(fused_logits, logits, rtol=1e-4, atol=1e-4)
    assert fused_grads.keys() == grads.keys()
    for name in grads:
        torch.testing.assert_close(fused_grads[name], grads[name], rtol=1e-3, atol=1e-4)


def test_unpatching_restores_every_forward() -> None:
    model = peft_model()
    before = {name: module.forward.__func__ for name, module in model.named_modules()}
    keys = list(model.state_dict())
    patch_peft(model)
    assert list(model.state_dict()) == keys
    unpatch_peft(model)
    assert {name: module.forward.__func__ for name, module in model.named_modules()} == before
    assert not hasattr(model, "_loraplex_state")


def test_disabled_merged_and_unmerged_adapters_are_pefts() -> None:
    model = peft_model()
    patch_peft(model)
    logits, _ = loss_and_gradients(model)
    with torch.no_grad():
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=tokens()).logits, base_model()(input_ids=tokens()).logits)
        model.merge_adapter()
        torch.testing.assert_close(model(input_ids=tokens()).logits, logits, rtol=1e-3, atol=1e-4)
        model.unmerge_adapter()
        torch.testing.assert_close(model(input_ids=tokens()).logits, logits, rtol=1e-3, atol=1e-4)


def test_a_saved_adapter_loads_into_an_unpatched_model(tmp_path: Path) -> None:
    model = peft_model()
    patch_peft(model)
    logits, _ = loss_and_gradients(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(base_model(), tmp_path)
    torch.testing.assert_close(loaded(input_ids=tokens()).logits, logits, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_fused_is_left_and_named() -> None:
    model = peft_model(target_modules=["q_proj", "embed_tokens"])
    assert set(patch_peft(model).left.values()) == {"an embedding"}
    model = peft_model(use_dora=True, target_modules=["q_proj"])
    expected, _ = loss_and_gradients(model)
    summary = patch_peft(model)
    assert summary.fused == ()
    assert set(summary.left.values()) == {"every adapter is a variant: DoraLinearVariant"}
    torch.testing.assert_close(loss_and_gradients(model)[0], expected)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"target_modules": ["q_proj"], "lora_bias": True}, "every adapter has a bias of its own (lora_bias)"),
        ({"target_modules": ["q_proj"], "r": 257}, "every adapter has r = 257, above 256"),
    ],
)
def test_an_adapter_that_no_kernel_holds_stays_with_peft_and_is_named(more: Options, why: str) -> None:
    model = peft_model(**more)
    expected, _ = loss_and_gradients(model)
    summary = patch_peft(model)
    assert (summary.fused, set(summary.left.values())) == ((), {why})
    assert torch.equal(loss_and_gradients(model)[0], expected)


def test_an_nf4_base_whose_blocks_lie_across_rows_stays_with_peft_and_is_named() -> None:
    model = peft_model(target_modules=["q_proj", "down_proj"])
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight: Any = layer.get_base_layer().weight
            weight.quant_state = SimpleNamespace(quant_type="nf4", shape=weight.shape, blocksize=64)
    summary = patch_peft(model)
    assert {name.rpartition(".")[2] for name in summary.fused} == {"q_proj"}
    assert {name.rpartition(".")[2]: why for name, why in summary.left.items()} == {
        "down_proj": "its NF4 blocks of 64 lie across rows of 96"
    }


@pytest.mark.parametrize("late", [False, True])
def test_a_base_weight_that_is_trained_gets_its_gradient_from_peft(late: bool) -> None:
    model = peft_model(target_modules=["q_proj"])
    layer: Any = next(layer for layer in model.modules() if isinstance(layer, LoraLayer))
    first: Tensor = layer.get_base_layer().weight
    first.requires_grad_(not late)
    summary = patch_peft(model)
    first.requires_grad_()
    assert set(summary.left.values()) == (set() if late else {"its base weight is trained"})
    loss_and_gradients(model)
    assert first.grad is not None
    found = first.grad.clone()
    unpatch_peft(model)
    model.zero_grad()
    loss_and_gradients(model)
    torch.testing.assert_close(found, first.grad)


def test_one_adapter_of_a_layer_may_stay_with_peft_beside_one_that_is_fused() -> None:
    model = peft_model(target_modules=["q_proj"])
    wide = peft.LoraConfig(r=300, target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("wide", wide)
    model.set_adapter("wide")
    expected, _ = loss_and_gradients(model)
    summary = patch_peft(model)
    assert len(summary.fused) == 2
    assert summary.left == {f"{name}, adapter wide": "it has r = 300, above 256" for name in summary.fused}
    assert torch.equal(loss_and_gradients(model)[0], expected)


def test_dropout_is_fresh_at_every_pass_off_in_evaluation_and_the_same_when_recomputed() -> None:
    model = peft_model(lora_dropout=0.5)
    patch_peft(model)
    model.train()
    first, grads = loss_and_gradients(model)
    assert not torch.equal(loss_and_gradients(model)[0], first)
    model._loraplex_state.step = 0
    llama = model.get_base_model()
    assert isinstance(llama, transformers.LlamaForCausalLM)
    llama.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    model.enable_input_require_grads()
    again, recomputed = loss_and_gradients(model)
    assert torch.equal(again, first)
    for name in grads:
        torch.testing.assert_close(recomputed[name], grads[name])
    model.eval()
    assert torch.equal(model(input_ids=tokens()).logits, model(input_ids=tokens()).logits)


def test_rows_of_two_adapters_in_one_pass_are_each_adapters_own() -> None:
    model = peft_model()
    model.add_adapter("other", peft.LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj"], init_lora_weights=False))
    alone = []
    for row, name in enumerate(["default", "other"]):
        model.set_adapter(name)
        alone.append(model(input_ids=tokens()[row : row + 1]).logits)
    patch_peft(model)
    routing = Routing.build(
        num_rows=22, segments=[Segment(first_row=11 * a, num_rows=11, adapter=a) for a in (0, 1)],
        scaling=[1.0, 1.0], dropout=[0.0, 0.0], seeds=[0, 1], global_batches=[0, 0],
    )  # fmt: skip
    with route(model, routing, ("default", "other")):
        together = model(input_ids=tokens()).logits
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_model_is_patched_once_and_only_if_it_has_lora() -> None:
    model = peft_model()
    patch_peft(model)
    with pytest.raises(ValueError, match="patched already"):
        patch_peft(model)
    with pytest.raises(ValueError, match="without LoRA layers"):
        patch_peft(base_model())
    with pytest.raises(ValueError, match="is not patched"):
        unpatch_peft(copy.deepcopy(base_model()))
