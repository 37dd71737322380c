"""PEFT's rule for target_modules, checked against peft itself."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loraplex.engine.model import whole_linears
from loraplex.engine.targets import short_targets, targeted


@pytest.mark.parametrize(
    "targets",
    [
        ("q_proj",),
        ("self_attn.q_proj", "down_proj"),
        ("model.layers.1.mlp.up_proj", "k_proj"),
        ("all-linear",),
        # A part of a name is no name.
        ("proj", "o_proj"),
    ],
)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_same_linears_as_peft(model_folder: str, targets: tuple[str, ...]) -> None:
    given = "all-linear" if "all-linear" in targets else list(targets)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(target_modules=given, task_type="CAUSAL_LM")
    )
    expected = {
        name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")
    }
    assert {name for name in whole_linears(model_folder) if targeted(name, targets)} == expected


def test_short_names_for_adapter_config() -> None:
    linears = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")
    assert short_targets(linears, ("all-linear",)) == ("q_proj", "up_proj")
    assert short_targets(linears, ("q_proj",)) == ("q_proj",)
