"""From examples to tokens and masks: rendering, tokenising, and saying which tokens are learned.

A prompt and its completion are tokenised apart, as they will be when the model is used; <eos> ends the completion. A
conversation is rendered whole by the chat template. Learned are completions and assistant turns with their end marks.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import JobError
from .texts import Example

Progress = Callable[[str, float], None]
Tokenizer = Any
"""A transformers PreTrainedTokenizerFast; its types are too loose to say more."""

IGNORED = -100
"""The label of a token that is not learned, as in transformers."""
_CHUNK = 512
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_GENERATION_TAGS = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
_AS_TEXT: Mapping[str, bool] = MappingProxyType({"tokenize": False})
_BEFORE_ANSWER: Mapping[str, bool] = MappingProxyType({"tokenize": False, "add_generation_prompt": True})
_WITH_MASK: Mapping[str, bool] = MappingProxyType(
    {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenTable:
    """The tokens of many examples in columns. Row i holds `token_ids[starts[i]:starts[i + 1]]`.

    A table of lengths alone has rows and no tokens: `token_ids` and `learned` are empty then.
    """

    token_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """Whether each token is learned."""
    starts: NDArray[np.int64]
    """One entry more than there are rows."""
    places: tuple[str, ...]
    """Where each row's example stands."""

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], *, places: Sequence[str]) -> "TokenTable":
        """A table to plan with, whose texts are nowhere."""
        return cls(
            token_ids=np.empty(0, dtype=np.int32),
            learned=np.empty(0, dtype=np.bool_),
            starts=_starts(lengths),
            places=tuple(places),
        )

    @classmethod
    def of_random(cls, lengths: Sequence[int], *, places: Sequence[str], vocabulary: int, seed: int) -> "TokenTable":
        """A table of random texts of these lengths, all of it learned: what a model with random weights is fed."""
        starts = _starts(lengths)
        token_ids = np.random.default_rng(seed).integers(0, vocabulary, int(starts[-1]), dtype=np.int32)
        return cls(token_ids=token_ids, learned=np.ones(len(token_ids), np.bool_), starts=starts, places=tuple(places))

    def has_tokens(self) -> bool:
        """Whether there are tokens, not only lengths."""
        return len(self.token_ids) == int(self.starts[-1])

    def row(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and labels (unshifted, IGNORED where not learned) of one row; JobError if there are none."""
        if not self.has_tokens():
            raise JobError(f"{self.places[index]}: is a length alone, without text; give texts to train on")
        span = slice(self.starts[index], self.starts[index + 1])
        token_ids = self.token_ids[span].astype(np.int64)
        return token_ids, np.where(self.learned[span], token_ids, IGNORED)

    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.starts)

    def num_target_tokens(self) -> NDArray[np.int64]:
        """Tokens of each row that enter the loss: learned ones but the first, which nothing predicts.

        Of lengths alone all are taken to enter it.
        """
        if not self.has_tokens():
            return self.num_tokens()
        counts = np.concatenate(([0], np.cumsum(self.learned, dtype=np.int64)))
        behind_first = np.minimum(self.starts[:-1] + 1, self.starts[1:])
        return counts[self.starts[1:]] - counts[behind_first]

    def of_rows(self, rows: Iterable[tuple[int, int]]) -> "TokenTable":
        """A table of (row, tokens kept from its start), in that order."""
        chosen = tuple(rows)
        spans = [slice(self.starts[row], self.starts[row] + length) for row, length in chosen]
        return TokenTable(
            token_ids=_joined([self.token_ids[span] for span in spans], np.int32),
            learned=_joined([self.learned[span] for span in spans], np.bool_),
            starts=_starts([length for _, length in chosen]),
            places=tuple(self.places[row] for row, _ in chosen),
        )


def tokenize(
    examples: Sequence[Example], tokenizer: Tokenizer, *, progress: Progress | None = None, label: str = "tokenising"
) -> TokenTable:
    """The tokens of all examples, in order. `progress` hears (label, share done) after each chunk."""
    ids: list[NDArray[np.int32]] = []
    learned: list[NDArray[np.bool_]] = []
    for first in range(0, len(examples), _CHUNK):
        for token_ids, mask in _chunk(examples[first : first + _CHUNK], tokenizer):
            ids.append(np.asarray(token_ids, dtype=np.int32))
            learned.append(np.asarray(mask, dtype=np.bool_))
        if progress is not None:
            progress(label, min(1.0, (first + _CHUNK) / len(examples)))
    return TokenTable(
        token_ids=_joined(ids, np.int32),
        learned=_joined(learned, np.bool_),
        starts=_starts([len(row) for row in ids]),
        places=tuple(example.place for example in examples),
    )


def joined(tables: Sequence[TokenTable]) -> TokenTable:
    """The rows of several tables, one after another."""
    return TokenTable(
        token_ids=_joined([table.token_ids for table in tables], np.int32),
        learned=_joined([table.learned for table in tables], np.bool_),
        starts=_starts(_joined([table.num_tokens() for table in tables], np.int64).tolist()),
        places=tuple(place for table in tables for place in table.places),
    )


def _joined(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _chunk(examples: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    plain = [example for example in examples if not example.turns]
    talks = [example for example in examples if example.turns]
    of_plain = iter(_completions(plain, tokenizer))
    of_talks = iter(_conversations(talks, tokenizer))
    return [next(of_talks if example.turns else of_plain) for example in examples]


def _completions(examples: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    if not examples:
        return []
    eos = tokenizer.eos_token_id
    if eos is None:
        raise JobError(f"{examples[0].place}: the tokenizer has no eos token, which must end a completion; set one")
    # What the tokenizer puts before any text, usually <bos>; what it may put behind is left to <eos>.
    before = [token for token in tokenizer("").input_ids[:1] if token == tokenizer.bos_token_id]
    texts = [text for example in examples for text in (example.prompt, example.completion)]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
    rows = []
    for prompt, completion in zip(encoded[::2], encoded[1::2], strict=True):
        ending = [] if completion[-1:] == [eos] else [eos]
        num_prompt = len(before) + len(prompt)
        num_learned = len(completion) + len(ending)
        rows.append((before + prompt + completion + ending, [False] * num_prompt + [True] * num_learned))
    return rows


def _conversations(examples: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    if not examples:
        return []
    if not tokenizer.chat_template:
        raise JobError(
            f"{examples[0].place}: the tokenizer has no chat template, which messages need; name a Jinja file under "
            "chat_template, or write prompt and completion"
        )
    if _GENERATION_MARK.search(tokenizer.get_chat_template()):
        return [_marked(example, tokenizer) for example in examples]
    rendered = [_spans(example, tokenizer) for example in examples]
    encoded = tokenizer(
        [text for text, _ in rendered],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    masks = [
        [any(begin <= offset[0] < end for begin, end in spans) for offset in offsets]
        for offsets, (_, spans) in zip(encoded.offset_mapping, rendered, strict=True)
    ]
    return list(zip(encoded.input_ids, masks, strict=True))


def _marked(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    rendered = _rendered(example, len(example.turns), tokenizer, options=_WITH_MASK)
    return rendered["input_ids"], [bool(learned) for learned in rendered["assistant_masks"]]


def _spans(example: Example, tokenizer: Tokenizer) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the [begin, end) characters of its assistant turns, found by growing prefixes."""
    whole = _rendered(example, len(example.turns), tokenizer)
    spans = []
    for position, turn in enumerate(example.turns):
        if turn.role == "assistant":
            before = _rendered(example, position, tokenizer, options=_BEFORE_ANSWER)
            upto = _rendered(example, position + 1, tokenizer)
            end = _end_of_turn(whole, before=before, upto=upto, content=turn.content.strip())
            if end is None:
                raise JobError(
                    f"{example.place}: the chat template renders turn {position + 1} differently when others follow, "
                    "so its tokens cannot be told apart; name a template with generation marks under chat_template"
                )
            spans.append((len(before), end))
    return whole, spans


def _end_of_turn(whole: str, *, before: str, upto: str, content: str) -> int | None:
    """Where in `whole` the turn ends that `before` leads up to and that `upto` ends with; None if it is not there.

    White space behind its end mark separates turns and is not part of it: the model is not asked to write it.
    """
    if not whole.startswith(before):
        return None
    if whole.startswith(upto) and upto.startswith(before):
        return len(upto.rstrip())
    # Some templates (Qwen3's is one) put an empty thought before the last answer only. Then the turn still is what
    # follows `before`: its content, and behind it the same end mark that it has when it is the last. The mark is what
    # stands behind the content there; a short content may also occur within the mark, so all places are tried.
    rest = whole[len(before) :]
    start = len(whole) - len(rest.lstrip())
    at = upto.rfind(content)
    while at > 0:
        ending = upto[at:].rstrip()
        if len(ending) > len(content) and whole.startswith(ending, start):
            return start + len(ending)
        at = upto.rfind(content, 0, at + len(content) - 1)
    return None


def template_complaint(template: str) -> str | None:
    """What makes a chat template unreadable as Jinja, as `3: unexpected '}'` with its line; None where nothing does.

    Else the first conversation would be blamed for it.
    """
    from jinja2 import Environment, TemplateSyntaxError

    try:
        # The tag that transformers adds is read by nobody else, and cut out on its line.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAGS.sub("", template))
    except TemplateSyntaxError as error:
        return f"{error.lineno}: not readable as Jinja ({str(error.message).rstrip('.')})"
    return None


def _rendered(example: Example, num_turns: int, tokenizer: Tokenizer, *, options: Mapping[str, bool] = _AS_TEXT) -> Any:
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.content} for turn in example.turns[:num_turns]]
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        raise JobError(
            f"{example.place}: the chat template refuses this conversation ({error}); mend its turns"
        ) from error
