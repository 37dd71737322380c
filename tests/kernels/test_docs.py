"""docs/kernels.md: its code runs, and its options are those that there are."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_shows_both_ways() -> None:
    assert [("patch_peft" in block, "Routing.build" in block) for block in BLOCKS] == [(True, False), (False, True)]


def test_a_peft_model_is_patched_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, object] = {}
    exec(compile(BLOCKS[0], str(PAGE), "exec"), found)
    assert capsys.readouterr().out == "14 linears run fused\n"


def test_the_op_is_called_as_the_page_says() -> None:
    found: dict[str, object] = {}
    wanted = "\nended = [x.grad, *(m.grad for m in lora_b)]\nbase = torch.nn.functional.linear(x, weight, bias)"
    exec(compile(BLOCKS[1] + wanted + "\nassert torch.equal(y[257:], base[257:])", str(PAGE), "exec"), found)
    ended = found["ended"]
    assert isinstance(ended, list)
    assert [gradient is not None and bool(gradient.isfinite().all()) for gradient in ended] == [True] * 3
