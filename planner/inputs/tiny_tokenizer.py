"""The tokenizer of the embedded model: one token a byte, so that nothing has to be downloaded or learned.

Token ids 0 to 255 are the bytes of the UTF-8 text; the six special tokens follow in the order of `_SPECIAL_TOKENS`.
Made with the `tokenizers` library's byte-level BPE and no merges. Needs the `train` extra, but not torch.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL_TOKENS: Final = ("<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>")

# Assistant turns stand between `generation` marks: they, and the <eos> that ends them, are what is learned.
_CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level tokenizer of 262 tokens with <pad>, <bos>, <eos> and a chat template.

    `save_pretrained` writes it to a folder.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytes_as_letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=bytes_as_letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(_SPECIAL_TOKENS[3:]),
        chat_template=_CHAT_TEMPLATE,
    )


def _byte_letters() -> tuple[str, ...]:
    # The letter that byte-level tokenizers write for each byte: itself where it is printable and no space,
    # else the next letter from 256 on (the alphabet GPT-2 introduced; pre_tokenizers.ByteLevel.alphabet() is its set).
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters: list[str] = []
    num_moved = 0
    for byte in range(256):
        letters.append(chr(byte) if byte in printable else chr(256 + num_moved))
        num_moved += byte not in printable
    return tuple(letters)
