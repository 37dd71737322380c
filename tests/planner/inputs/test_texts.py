"""Reading training texts: four formats in four kinds of file, and complaints that name the line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.jobfile import TextFormat
from loraplex.planner.inputs.texts import Example, Turn, read_examples


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def write_records(folder: Path, ending: str, records: Sequence[dict[str, Any]]) -> Path:
    """The same records in a file of any kind (csv only for flat ones)."""
    path = folder / f"records.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    elif ending == "json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    else:
        rows = [list(records[0]), *(list(record.values()) for record in records)]
        cells = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows]
        path.write_text("\n".join(cells) + "\n", encoding="utf-8", newline="")
    return path


def places(path: Path, ending: str, count: int) -> list[str]:
    """Where the records of a file stand, one line a record."""
    if ending in ("json", "parquet"):
        return [f"{path}, record {number}" for number in range(1, count + 1)]
    first = 2 if ending == "csv" else 1
    return [f"{path}:{number}" for number in range(first, first + count)]


FILES = ["jsonl", "json", "csv", "parquet"]


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("data_format", ["auto", "prompt_completion"])
def test_prompt_and_completion(tmp_path: Path, ending: str, data_format: TextFormat) -> None:
    records = [{"prompt": "2+2=", "completion": "4", "id": 7}, {"prompt": "", "completion": 'é, "x"', "id": 8}]
    path = write_records(tmp_path, ending, records)
    first, second = places(path, ending, 2)
    assert read_examples(path, data_format=data_format) == (
        Example(place=first, prompt="2+2=", completion="4"),
        Example(place=second, prompt="", completion='é, "x"'),
    )


@pytest.mark.parametrize("ending", FILES)
def test_plain_text_is_all_completion(tmp_path: Path, ending: str) -> None:
    path = write_records(tmp_path, ending, [{"text": "once"}])
    assert read_examples(path) == (Example(place=places(path, ending, 1)[0], completion="once"),)


@pytest.mark.parametrize("ending", FILES)
def test_alpaca_becomes_a_prompt_with_headings(tmp_path: Path, ending: str) -> None:
    records = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": ""},
        {"instruction": "Greet.", "input": "", "output": "Hi.", "system": "Be short."},
    ]
    path = write_records(tmp_path, ending, records)
    first, second = places(path, ending, 2)
    assert read_examples(path) == (
        Example(
            place=first,
            prompt="### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            completion="3",
        ),
        Example(place=second, prompt="Be short.\n\n### Instruction:\nGreet.\n\n### Response:\n", completion="Hi."),
    )


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_messages_and_their_sharegpt_spelling(tmp_path: Path, ending: str) -> None:
    turns = (
        Turn(role="system", content="s"),
        Turn(role="user", content="u"),
        Turn(role="assistant", content="a"),
    )
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    path = write_records(tmp_path, ending, [{"messages": messages}])
    assert read_examples(path) == (Example(place=places(path, ending, 1)[0], turns=turns),)
    spelled = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": spelled[turn.role], "value": turn.content} for turn in turns]
    path = write_records(tmp_path, ending, [{"conversations": sharegpt}])
    assert read_examples(path) == (Example(place=places(path, ending, 1)[0], turns=turns),)


@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_any_text_survives_any_file(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    records = [{"prompt": text, "completion": "x" + text} for text in texts]
    for ending in FILES:
        found = read_examples(write_records(tmp_path_factory.mktemp("any"), ending, records))
        assert [(example.prompt, example.completion) for example in found] == [(text, "x" + text) for text in texts]


def test_blank_lines_and_a_byte_order_mark_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '\ufeff{"text": "a"}\n\n  \n{"text": "b"}')
    assert read_examples(path) == (
        Example(place=f"{path}:1", completion="a"),
        Example(place=f"{path}:4", completion="b"),
    )


def test_a_csv_record_stands_where_it_begins(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,other\n"two\nlines",1\nb,2\n')
    assert [(example.place, example.completion) for example in read_examples(path)] == [
        (f"{path}:2", "two\nlines"),
        (f"{path}:4", "b"),
    ]


def test_a_csv_cell_may_be_long(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f"text\n{'x' * 300_000}\n")
    assert [len(example.completion) for example in read_examples(path)] == [300_000]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", "", ": holds no records"),
        ("a.json", "[]", ": holds no records"),
        ("a.csv", "text\n", ": holds no records"),
        ("a.csv", "", ": holds no records"),
        ("a.txt", "x", ": the ending '.txt' is not one of .jsonl, .json, .csv, .parquet"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', ":2: not readable as JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', ":2: holds a list, not a record"),
        ("a.jsonl", "[" * 100_000, ":1: not readable as JSON"),
        ("a.json", '[{"text": "a"},]', ": not readable as JSON"),
        ("a.json", '{"text": "a"}', ": holds one record, not a list of records"),
        ("a.json", '[{"text": "a"}, 3]', ", record 2: holds a number, not a record"),
        ("a.jsonl", '{"text": ' + "9" * 5_000 + "}", ":1: not readable as JSON"),
        ("a.csv", "text,prompt,text\na,b,c\n", ":1: the header names 'text' twice; rename or drop one"),
        ("a.csv", "text,more\na,b\nc\n", ":3: the row does not have the header's 2 columns"),
        ("a.csv", "text\na\nb,c\n", ":3: the row does not have the header's 1 columns"),
        ("a.csv", 'text\n"a"b\n', ":2: not readable as CSV"),
        ("a.parquet", "not parquet", ": not readable as parquet"),
        ("a.jsonl", '{"foo": 1, "bar": 2}', ":1: the fields ['bar', 'foo'] belong to no known format"),
        (
            "a.csv",
            "num_tokens\n3\n",
            ":2: the fields ['num_tokens'] belong to no known format; it needs prompt and completion, messages, "
            "instruction and output, or text; lengths alone are read under `type: lengths`",
        ),
        ("a.jsonl", '{"completion": "a"}', ":1: prompt is missing"),
        ("a.jsonl", '{"prompt": "a", "completion": null}', ":1: completion is null; it must be text: fill it in"),
        (
            "a.jsonl",
            '{"prompt": "a", "completion": 3}',
            ":1: completion is of type int; it must be text, so put it into quotes",
        ),
        ("a.jsonl", '{"prompt": "a", "completion": " \\n"}', ":1: completion is empty, so there is nothing to learn"),
        ("a.jsonl", '{"text": ""}', ":1: text is empty"),
        ("a.jsonl", '{"text": "ab\\ud800"}', ":1: character 2 of text is half a character"),
        ("a.jsonl", '{"instruction": "a"}', ":1: output is missing"),
        ("a.jsonl", '{"instruction": "a", "output": "b", "history": [["x", "y"]]}', ":1: history is not read"),
        ("a.jsonl", '{"messages": []}', ":1: messages must be a list of messages"),
        ("a.jsonl", '{"messages": "hello"}', ":1: messages must be a list of messages"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', ":1: messages[0] needs a role and a content"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": [1]}]}', ":1: messages[0] needs a role and a content"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a"}]}',
            ":1: messages has no turn of the role assistant",
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            ":1: messages begins with the assistant",
        ),
    ],
)
def test_bad_texts_name_file_and_line(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(JobError) as error:
        read_examples(path)
    assert str(error.value).startswith(f"{path}{complaint}")


def test_the_given_format_is_held_to(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a"}')
    with pytest.raises(
        JobError,
        match=r"a\.jsonl:1: instruction is missing; the record has text: add it, or give the dataset another type",
    ):
        read_examples(path, data_format="alpaca")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        read_examples(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "\xe9t\xe9"}'.encode("latin-1"))
    with pytest.raises(JobError, match=r"latin\.jsonl: byte 10 is not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")
