"""Tokens and masks: what the model reads, and which of it is learned."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.texts import Example, Turn
from loraplex.planner.inputs.tiny_tokenizer import tiny_tokenizer
from loraplex.planner.inputs.tokens import TokenTable, template_complaint, tokenize

BOS, EOS, SYSTEM, USER, ASSISTANT = range(257, 262)

# As many models have it: the turns are marked, but not what is learned.
CHATML = (
    "{% for message in messages %}{{ '[' + message.role + ']\n' + message.content + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}{{ '[' + message.role + ']\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<eos>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message.content + '<eos>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# As Qwen3 has it: only the last answer is preceded by an (empty) thought, so that a turn changes when others follow.
THOUGHTFUL = (
    "{% for message in messages %}{{ '[' + message.role + ']\n' }}"
    "{% if message.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ message.content + '<eos>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# Answers are shouted once others follow: nothing of what was learned would be there.
SHOUTING = (
    "{% for message in messages %}[{{ message.role }}]"
    "{{ message.content if loop.last else message.content.upper() }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer(*, chat_template: str | None = None, bos_first: bool = False, merges: bool = False) -> Any:
    """The tiny tokenizer, changed."""
    from tokenizers import processors

    made: Any = tiny_tokenizer()
    if chat_template is not None:
        made.chat_template = chat_template
    if merges:
        made = made.train_new_from_iterator(["hello hello world, the cat and the hat"] * 50, 300)
    if bos_first:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
        )
    return made


def rows(table: TokenTable) -> list[tuple[list[int], list[int]]]:
    return [(ids.tolist(), labels.tolist()) for ids, labels in (table.row(index) for index in range(len(table)))]


def completion(prompt: str, text: str) -> Example:
    return Example(place="x.jsonl:1", prompt=prompt, completion=text)


def talk(*turns: tuple[str, str]) -> Example:
    return Example(place="x.jsonl:1", turns=tuple(Turn(role=role, content=content) for role, content in turns))


def test_a_completion_and_its_end_are_learned() -> None:
    table = tokenize([completion("ab", "cd"), completion("", "e")], tokenizer())
    assert rows(table) == [
        ([97, 98, 99, 100, EOS], [-100, -100, 99, 100, EOS]),
        ([101, EOS], [101, EOS]),
    ]
    assert table.num_tokens().tolist() == [5, 2]
    # The first token of a sample is predicted by nothing.
    assert table.num_target_tokens().tolist() == [3, 1]
    assert table.places == ("x.jsonl:1", "x.jsonl:1")


def test_what_the_tokenizer_puts_first_is_kept_and_its_end_comes_once() -> None:
    table = tokenize([completion("a", "b"), completion("", "b<eos>")], tokenizer(bos_first=True))
    assert rows(table) == [([BOS, 97, 98, EOS], [-100, -100, 98, EOS]), ([BOS, 98, EOS], [-100, 98, EOS])]


def test_prompt_and_completion_are_tokenised_apart() -> None:
    merged = tokenizer(merges=True)
    whole = merged("the hat").input_ids
    table = tokenize([completion("the h", "at")], merged)
    assert rows(table)[0][0] == merged("the h").input_ids + merged("at").input_ids + [merged.eos_token_id]
    assert rows(table)[0][0][:-1] != whole


def test_a_marked_template_says_itself_what_is_learned() -> None:
    table = tokenize([talk(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))], tokenizer())
    expected_ids = [BOS, SYSTEM, 115, USER, 117, ASSISTANT, 97, EOS, USER, 118]
    assert rows(table) == [(expected_ids, [-100] * 6 + [97, EOS] + [-100] * 2)]


def test_without_marks_growing_prefixes_find_the_turns() -> None:
    table = tokenize([talk(("user", "u"), ("assistant", "a"))], tokenizer(chat_template=CHATML))
    text = b"[user]\nu", b"\n[assistant]\n", b"a", b"\n"
    expected_ids = [*text[0], EOS, *text[1], *text[2], EOS, *text[3]]
    learned_from = len(text[0]) + 1 + len(text[1])
    assert rows(table) == [
        (expected_ids, [-100] * learned_from + expected_ids[learned_from : learned_from + 2] + [-100])
    ]


contents = st.text(alphabet="ab \né猫[]", max_size=6)
talks = st.lists(st.tuples(contents, contents), min_size=1, max_size=3).map(
    lambda pairs: talk(*(turn for ask, answer in pairs for turn in (("user", ask), ("assistant", answer))))
)


@settings(max_examples=60)
@given(examples=st.lists(talks, min_size=1, max_size=3), merges=st.booleans())
def test_growing_prefixes_and_marks_agree(examples: list[Example], merges: bool) -> None:
    found = tokenize(examples, tokenizer(chat_template=CHATML, merges=merges))
    truth = tokenize(examples, tokenizer(chat_template=CHATML_MARKED, merges=merges))
    assert rows(found) == rows(truth)


def test_kinds_may_be_mixed_and_keep_their_order() -> None:
    examples = [talk(("user", "u"), ("assistant", "a")), completion("p", "c"), talk(("user", "v"), ("assistant", "b"))]
    heard: list[tuple[str, float]] = []
    table = tokenize(examples, tokenizer(), label="here", progress=lambda label, share: heard.append((label, share)))
    assert [ids[-2] for ids, _ in rows(table)] == [97, 99, 98]
    assert heard == [("here", 1.0)]


def test_many_examples_are_the_same_as_one_by_one() -> None:
    examples = [completion("p" * (number % 7), "c" * (1 + number % 5)) for number in range(1100)]
    heard: list[float] = []
    table = tokenize(examples, tokenizer(), progress=lambda _, share: heard.append(share))
    assert rows(table) == [rows(tokenize([example], tokenizer()))[0] for example in examples]
    assert heard == [512 / 1100, 1024 / 1100, 1.0]


def test_rows_can_be_chosen_and_cut() -> None:
    table = tokenize([completion("ab", "cd"), completion("", "e"), completion("", "fg")], tokenizer())
    cut = table.of_rows([(2, 3), (0, 3)])
    assert rows(cut) == [([102, 103, EOS], [102, 103, EOS]), ([97, 98, 99], [-100, -100, 99])]
    assert cut.places == ("x.jsonl:1", "x.jsonl:1")
    assert len(table.of_rows([])) == 0
    assert table.of_rows([]).num_target_tokens().tolist() == []


@given(
    masks=st.lists(st.lists(st.booleans(), max_size=6), max_size=6),
)
def test_target_tokens_are_the_labels_that_survive_the_shift(masks: list[list[bool]]) -> None:
    lengths = [len(mask) for mask in masks]
    table = TokenTable(
        token_ids=np.arange(sum(lengths), dtype=np.int32),
        learned=np.array([learned for mask in masks for learned in mask], dtype=np.bool_),
        starts=np.cumsum([0, *lengths], dtype=np.int64),
        places=tuple("" for _ in masks),
    )
    assert table.num_target_tokens().tolist() == [
        sum(label != -100 for label in labels[1:]) for _, labels in rows(table)
    ]


def test_a_thought_before_the_last_answer_only_is_no_hindrance() -> None:
    talks = [
        talk(("user", "u"), ("assistant", "a")),
        talk(("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", " b ")),
    ]
    table = tokenize(talks, tokenizer(chat_template=THOUGHTFUL))
    learned = [
        "".join(chr(label) if label < 256 else "$" for label in labels if label >= 0) for _, labels in rows(table)
    ]
    assert learned == ["<think></think>a$", "a$<think></think> b $"]


@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(contents, st.text(alphabet="aeos<>", min_size=1, max_size=4)), min_size=1, max_size=3))
def test_a_thought_before_the_last_answer_hides_no_answer(pairs: list[tuple[str, str]]) -> None:
    turns = [turn for ask, answer in pairs for turn in (("user", ask), ("assistant", answer))]
    (_, labels), *_ = rows(tokenize([talk(*turns)], tokenizer(chat_template=THOUGHTFUL)))
    learned = "".join(chr(label) if label < 256 else "$" for label in labels if label >= 0)
    answers = [answer for _, answer in pairs]
    answers[-1] = f"<think></think>{answers[-1]}"
    assert learned == "".join(f"{answer}$" for answer in answers).replace("<eos>", "$")


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    shouting = tokenizer(chat_template=SHOUTING)
    first = ("user", "U"), ("assistant", "a")
    assert rows(tokenize([talk(*first)], shouting))[0][1][-2:] == [97, EOS]
    with pytest.raises(JobError, match=r"x\.jsonl:1: the chat template renders turn 2 differently when others follow"):
        tokenize([talk(*first, ("user", "V"), ("assistant", "b"))], shouting)


def test_a_template_is_read_before_any_conversation() -> None:
    marked = "{%- generation -%}a{% endgeneration %}{% for turn in messages %}{% break %}{% endfor %}"
    assert template_complaint(marked) is None
    assert template_complaint(f"{marked}\n{{{{ messages ") == (
        "2: not readable as Jinja (unexpected end of template, expected 'end of print statement')"
    )


def test_a_template_that_refuses_a_conversation_is_quoted() -> None:
    strict = tokenizer(chat_template="{{ raise_exception('no system turns') }}")
    with pytest.raises(JobError, match=r"x\.jsonl:1: the chat template refuses .*\(no system turns\)"):
        tokenize([talk(("user", "u"), ("assistant", "a"))], strict)


def test_a_tokenizer_lacking_what_a_format_needs_is_named() -> None:
    bare = tokenizer()
    bare.chat_template = None
    with pytest.raises(JobError, match=r"x\.jsonl:1: the tokenizer has no chat template"):
        tokenize([talk(("user", "u"), ("assistant", "a"))], bare)
    bare.eos_token = None
    with pytest.raises(JobError, match=r"x\.jsonl:1: the tokenizer has no eos token"):
        tokenize([completion("p", "c")], bare)
