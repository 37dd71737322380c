"""Tokens of large files are kept between runs, and never stale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loraplex.planner.inputs import token_cache
from loraplex.planner.inputs.texts import read_examples
from loraplex.planner.inputs.tiny_tokenizer import tiny_tokenizer
from loraplex.planner.inputs.token_cache import cache_folder, cached_table
from loraplex.planner.inputs.tokens import TokenTable, tokenize


class Loader:
    """Loads a file through the cache and remembers how often it was tokenised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_made = 0
        self.tokenizer: Any = tiny_tokenizer()
        self.data_format = "auto"

    def load(self, path: Path) -> TokenTable:
        def make() -> TokenTable:
            self.num_made += 1
            return tokenize(read_examples(path), self.tokenizer)

        return cached_table(
            path, tokenizer=self.tokenizer, data_format=self.data_format, make=make, folder=self.folder / "kept"
        )


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    monkeypatch.setattr(token_cache, "WORTH_CACHING_BYTES", 0)
    return Loader(tmp_path)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "é"}\n\n{"text": "x"}\n', encoding="utf-8")
    return path


def columns(table: TokenTable) -> tuple[list[int], list[bool], list[int], tuple[str, ...]]:
    return table.token_ids.tolist(), table.learned.tolist(), table.starts.tolist(), table.places


def test_the_second_time_nothing_is_tokenised(loader: Loader, texts: Path) -> None:
    first = loader.load(texts)
    assert columns(first)[3] == (f"{texts}:1", f"{texts}:3")
    assert columns(loader.load(texts)) == columns(first)
    assert loader.num_made == 1
    assert [path.suffix for path in (loader.folder / "kept").iterdir()] == [".npz"]


def test_the_same_content_elsewhere_is_known_but_keeps_its_own_places(loader: Loader, texts: Path) -> None:
    loader.load(texts)
    moved = texts.rename(texts.with_name("b.jsonl"))
    assert loader.load(moved).places == (f"{moved}:1", f"{moved}:3")
    assert loader.num_made == 1


def test_whatever_changes_the_tokens_makes_them_anew(loader: Loader, texts: Path, tmp_path: Path) -> None:
    loader.load(texts)
    texts.write_text('{"text": "y"}\n', encoding="utf-8")
    assert columns(loader.load(texts))[0] == [ord("y"), 258]
    loader.tokenizer.chat_template = "another"
    loader.load(texts)
    loader.tokenizer.eos_token = "<pad>"
    assert columns(loader.load(texts))[0] == [ord("y"), 256]
    loader.tokenizer.add_tokens(["yy"])
    loader.load(texts)
    loader.data_format = "text"
    loader.load(texts)
    assert loader.num_made == 6


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_cache_is_made_anew(loader: Loader, texts: Path, damage: bytes | None) -> None:
    good = columns(loader.load(texts))
    (kept,) = (loader.folder / "kept").iterdir()
    if damage is None:
        np.savez(kept, token_ids=np.zeros(3))
    else:
        kept.write_bytes(damage)
    assert columns(loader.load(texts)) == good
    assert columns(loader.load(texts)) == good
    assert loader.num_made == 2


def test_a_cache_that_cannot_be_written_is_as_good_as_none(loader: Loader, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be", encoding="utf-8")
    assert columns(loader.load(texts)) == columns(loader.load(texts))
    assert loader.num_made == 2


def test_small_files_are_not_kept(texts: Path, tmp_path: Path) -> None:
    loader = Loader(tmp_path)
    loader.load(texts)
    loader.load(texts)
    assert loader.num_made == 2
    assert not (tmp_path / "kept").exists()


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LORAPLEX_CACHE", raising=False)
    assert cache_folder() == Path("/home/me/.cache/loraplex/tokens")
    monkeypatch.setenv("XDG_CACHE_HOME", "/big")
    assert cache_folder() == Path("/big/loraplex/tokens")
    monkeypatch.setenv("LORAPLEX_CACHE", "/own")
    assert cache_folder() == Path("/own/tokens")
