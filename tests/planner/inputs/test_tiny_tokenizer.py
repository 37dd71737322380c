"""The embedded model's tokenizer: bytes in, bytes out, and a chat template that marks what is learned."""

from pathlib import Path
from typing import Any

from loraplex.planner.inputs.base_model import TINY_CONFIG
from loraplex.planner.inputs.tiny_tokenizer import tiny_tokenizer

PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = range(256, 262)


def test_a_token_is_a_byte() -> None:
    text = "12 cm = 120 mm, naïve → 猫\x00\n\t ~"
    ids = tiny_tokenizer()(text).input_ids
    assert ids == list(text.encode())
    assert tiny_tokenizer().decode(ids) == text


def test_special_tokens_follow_the_bytes_as_the_config_says() -> None:
    tokenizer = tiny_tokenizer()
    specials = "<pad><bos><eos><|system|><|user|><|assistant|>"
    assert tokenizer(specials).input_ids == [PAD, BOS, EOS, SYSTEM, USER, ASSISTANT]
    assert len(tokenizer) == TINY_CONFIG["vocab_size"]
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [
        TINY_CONFIG["pad_token_id"],
        TINY_CONFIG["bos_token_id"],
        TINY_CONFIG["eos_token_id"],
    ]


def test_the_chat_template_marks_assistant_turns() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]
    rendered: Any = tiny_tokenizer().apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    assert rendered["input_ids"] == [BOS, USER, ord("a"), ASSISTANT, ord("b"), ord("c"), EOS]
    assert rendered["assistant_masks"] == [0, 0, 0, 0, 1, 1, 1]


def test_saved_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tiny_tokenizer().save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "é"}, {"role": "assistant", "content": ""}]
    assert again.apply_chat_template(turns, tokenize=False) == "<bos><|system|>s<|user|>é<|assistant|><eos>"
    assert again("x<eos>").input_ids == [ord("x"), EOS]
