"""The tokens of an adapter's files, held to sequence_len."""

import json
from pathlib import Path
from typing import Any

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.jobfile import DatasetEntry, LongSamples
from loraplex.planner.inputs.read_table import ReadTable, read_table
from loraplex.planner.inputs.tiny_tokenizer import tiny_tokenizer

EOS = 258


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


def write(folder: Path, *completions: str, name: str = "a.jsonl", prompt: str = "pp") -> None:
    records = [json.dumps({"prompt": prompt, "completion": completion}) for completion in completions]
    (folder / name).write_text("\n".join(records), encoding="utf-8")


def read(
    folder: Path, tokenizer: Any, *names: str, sequence_len: int = 100, long_samples: LongSamples = "error"
) -> ReadTable:
    return read_table(
        [DatasetEntry(path=name) for name in names or ("a.jsonl",)],
        folder=folder,
        tokenizer=tokenizer,
        sequence_len=sequence_len,
        long_samples=long_samples,
    )


def contents(table: ReadTable) -> list[list[int]]:
    return [table.table.row(index)[0].tolist() for index in range(len(table.table))]


def test_files_follow_each_other(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a", "b")
    write(tmp_path, "c", name="b.jsonl", prompt="")
    found = read(tmp_path, tokenizer, "a.jsonl", "b.jsonl")
    assert contents(found) == [[112, 112, 97, EOS], [112, 112, 98, EOS], [99, EOS]]
    assert found.table.places == (f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:2", f"{tmp_path}/b.jsonl:1")
    assert (found.num_truncated, found.num_skipped) == (0, 0)


def test_built_in_texts_are_named_demo(tmp_path: Path, tokenizer: Any) -> None:
    found = read(tmp_path, tokenizer, "demo:words.json", sequence_len=200)
    assert len(found.table) == 291
    # No way out of the folder of built-in texts.
    with pytest.raises(JobError, match=r"demo/jobfile\.py: the ending"):
        read(tmp_path, tokenizer, "demo:../jobfile.py")


def test_long_samples_are_an_error_that_counts_them(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "abc", "abcd", "a")
    assert len(read(tmp_path, tokenizer, sequence_len=7).table) == 3
    with pytest.raises(JobError) as error:
        read(tmp_path, tokenizer, sequence_len=5)
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl:2: 7 tokens, the most of 2 in 3 samples that exceed sequence_len=5; raise it, or set "
        "long_samples to truncate or skip"
    )


def test_long_samples_may_be_skipped(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "abc", "a", "abcd", "b")
    found = read(tmp_path, tokenizer, sequence_len=5, long_samples="skip")
    assert contents(found) == [[112, 112, 97, EOS], [112, 112, 98, EOS]]
    assert found.table.places == (f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:4")
    assert (found.num_truncated, found.num_skipped) == (0, 2)
    with pytest.raises(JobError, match=r"4 in 4 samples that exceed sequence_len=3, so that none is left; raise it"):
        read(tmp_path, tokenizer, sequence_len=3, long_samples="skip")


def test_long_samples_may_be_cut_at_their_end(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "abc", "a")
    found = read(tmp_path, tokenizer, sequence_len=4, long_samples="truncate")
    assert contents(found) == [[112, 112, 97, 98], [112, 112, 97, EOS]]
    assert (found.num_truncated, found.num_skipped) == (1, 0)


def test_a_cut_must_leave_something_to_learn(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "abc", "a", prompt="pppp")
    with pytest.raises(JobError) as error:
        read(tmp_path, tokenizer, sequence_len=4, long_samples="truncate")
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl:1: no target tokens, so there is nothing to learn, and 2 of 2 samples are like that; "
        "raise sequence_len or set long_samples to skip"
    )


def test_a_sample_without_target_tokens_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    # Rendered to nothing by its template, as can happen with templates that know other roles only.
    tokenizer.chat_template = "{% for message in messages %}{% if message.role == 'bot' %}x{% endif %}{% endfor %}"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    with pytest.raises(JobError) as error:
        read(tmp_path, tokenizer)
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl:1: no target tokens, so there is nothing to learn, and 1 of 1 samples are like that; fill "
        "them in or remove them"
    )
