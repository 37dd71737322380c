"""Training texts as users have them: prompt/completion, messages, Alpaca or plain text, in jsonl, json, csv or parquet.

A record becomes an Example, which is all that tokenising needs. Every complaint names the file and the line (or the
record, where a file has no lines).
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import JobError
from .jobfile import TextFormat

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training text: a conversation if it has turns, else a prompt and the completion to learn."""

    place: str
    """Where it stands: `units.jsonl:12` or `words.json, record 12`."""
    prompt: str = ""
    completion: str = ""
    turns: tuple[Turn, ...] = ()


def read_examples(path: Path, *, data_format: TextFormat = "auto") -> tuple[Example, ...]:
    """All examples of a file, in its order. Raises JobError naming file and line."""
    examples = tuple(_example(place, record, data_format) for place, record in _records(path))
    if not examples:
        raise JobError(f"{path}: holds no records; an adapter needs at least one sample")
    return examples


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    readers = {".jsonl": _from_jsonl, ".json": _from_json, ".csv": _from_csv, ".parquet": _from_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise JobError(f"{path}: the ending {path.suffix!r} is not one of {', '.join(readers)}; convert or rename it")
    try:
        yield from reader(path)
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror or error}); mend the path in the job file") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _from_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _mapping(f"{path}:{number}", _json(line, f"{path}:{number}"))


def _from_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    records = _json(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(records, list):
        raise JobError(f"{path}: holds {_kind(records)}, not a list of records; put them between [ and ]")
    for number, record in enumerate(records, start=1):
        yield _mapping(f"{path}, record {number}", record)


def _from_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # The csv module refuses cells above 128 KiB unless told otherwise; long documents are longer.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        first_line = 1
        try:
            columns = reader.fieldnames or ()
            num_columns = len(columns)
            twice = [name for name in columns if list(columns).count(name) > 1]
            if twice:
                raise JobError(f"{path}:1: the header names {twice[0]!r} twice; rename or drop one of the columns")
            first_line = reader.line_num + 1
            for record in reader:
                # A quoted cell may run over several lines: the place is where the record begins.
                place, first_line = f"{path}:{first_line}", reader.line_num + 1
                if None in record or None in record.values():
                    raise JobError(f"{place}: the row does not have the header's {num_columns} columns; mend it")
                yield place, record
        except csv.Error as error:
            raise JobError(f"{path}:{first_line}: not readable as CSV ({error}); mend the record") from error


def _from_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if find_spec("pyarrow") is None:
        raise JobError(f"{path}: parquet files need pyarrow; install it with `pip install 'loraplex[train]'`")
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            records = (record for batch in table.iter_batches() for record in batch.to_pylist())
            for number, record in enumerate(records, start=1):
                yield f"{path}, record {number}", record
    except pyarrow.ArrowException as error:
        raise JobError(f"{path}: not readable as parquet ({error}); write the file again") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # A bare ValueError is a number of thousands of digits.
        raise JobError(f"{place}: not readable as JSON ({error}); mend or delete it") from error


def _kind(value: Any) -> str:
    kinds = {dict: "one record", list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean"}
    return kinds.get(type(value), "null")


def _mapping(place: str, record: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(record, dict):
        raise JobError(f"{place}: holds {_kind(record)}, not a record in braces with named fields")
    return place, record


def _example(place: str, record: Mapping[str, Any], data_format: TextFormat) -> Example:
    makers = {
        "prompt_completion": _from_prompt,
        "messages": _from_messages,
        "alpaca": _from_alpaca,
        "text": _from_text,
    }
    return makers[_detected(place, record) if data_format == "auto" else data_format](place, record)


def _detected(place: str, record: Mapping[str, Any]) -> TextFormat:
    if "messages" in record or "conversations" in record:
        return "messages"
    if "completion" in record:
        return "prompt_completion"
    if "instruction" in record:
        return "alpaca"
    if "text" in record:
        return "text"
    lengths = "; lengths alone are read under `type: lengths`" if "num_tokens" in record else ""
    raise JobError(
        f"{place}: the fields {sorted(record)} belong to no known format; it needs prompt and completion, messages, "
        f"instruction and output, or text{lengths}"
    )


def _from_prompt(place: str, record: Mapping[str, Any]) -> Example:
    return Example(
        place=place, prompt=_text(place, record, "prompt"), completion=_text(place, record, "completion", required=True)
    )


def _from_text(place: str, record: Mapping[str, Any]) -> Example:
    return Example(place=place, completion=_text(place, record, "text", required=True))


def _from_alpaca(place: str, record: Mapping[str, Any]) -> Example:
    if record.get("history"):
        raise JobError(f"{place}: history is not read; write the conversation as messages")
    parts = [
        _text(place, record, "system") if record.get("system") else "",
        f"### Instruction:\n{_text(place, record, 'instruction')}",
        f"### Input:\n{_text(place, record, 'input')}" if record.get("input") else "",
        "### Response:\n",
    ]
    return Example(
        place=place,
        prompt="\n\n".join(part for part in parts if part),
        completion=_text(place, record, "output", required=True),
    )


def _from_messages(place: str, record: Mapping[str, Any]) -> Example:
    name = "messages" if "messages" in record else "conversations"
    messages = record.get(name)
    if not isinstance(messages, list) or not messages or not all(isinstance(turn, dict) for turn in messages):
        raise JobError(f"{place}: {name} must be a list of messages with role and content")
    turns = tuple(_turn(place, f"{name}[{position}]", message) for position, message in enumerate(messages))
    if not any(turn.role == "assistant" for turn in turns):
        raise JobError(f"{place}: {name} has no turn of the role assistant, so there is nothing to learn; remove it")
    if turns[0].role == "assistant":
        raise JobError(f"{place}: {name} begins with the assistant, who answers to nothing; put a user turn before it")
    return Example(place=place, turns=turns)


def _turn(place: str, name: str, message: Mapping[str, Any]) -> Turn:
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise JobError(f"{place}: {name} needs a role and a content, both text")
    return Turn(role=_ROLES.get(role, role), content=_whole(place, name, content))


def _text(place: str, record: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        if name in record and value is None:
            raise JobError(f"{place}: {name} is null; it must be text: fill it in or remove the record")
        if value is None:
            held = ", ".join(sorted(map(str, record))) or "nothing"
            raise JobError(
                f"{place}: {name} is missing; the record has {held}: add it, or give the dataset another type"
            )
        raise JobError(f"{place}: {name} is of type {type(value).__name__}; it must be text, so put it into quotes")
    if required and not value.strip():
        raise JobError(f"{place}: {name} is empty, so there is nothing to learn; fill it in or remove the record")
    return _whole(place, name, value)


def _whole(place: str, name: str, text: str) -> str:
    # JSON can say half a character (a lone surrogate), which no tokenizer can read.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise JobError(f"{place}: character {error.start} of {name} is half a character; mend the escape") from error
    return text
