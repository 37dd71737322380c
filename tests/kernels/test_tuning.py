"""Tuned configurations: which bucket serves a call, and what a damaged or foreign file is worth."""

import dataclasses
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loraplex.kernels import tuning
from loraplex.kernels.layout import DEFAULT_CONFIG
from loraplex.kernels.tuning import SHIPPED, Tuned, choose_config, read_tuned, tuned_document, write_tuned


def entry(max_rows: int, max_lora_rank: int, *, dropout: bool = False) -> Tuned:
    config = dataclasses.replace(DEFAULT_CONFIG, min_programs=max_rows * 1000 + max_lora_rank)
    return Tuned(dtype="torch.bfloat16", max_rows=max_rows, max_lora_rank=max_lora_rank, dropout=dropout, config=config)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A GPU with four buckets and no device behind it."""
    entries = (entry(2048, 16), entry(8192, 16), entry(2048, 64), entry(8192, 64))
    monkeypatch.setattr(tuning, "_entries", lambda _: entries)
    monkeypatch.setattr(tuning, "fallback_config", lambda _: DEFAULT_CONFIG)
    choose_config.cache_clear()
    yield torch.device("cuda")
    choose_config.cache_clear()


@pytest.mark.parametrize(
    ("num_rows", "lora_rank", "bucket"),
    [(100, 16, 2048016), (2049, 16, 8192016), (99999, 16, 8192016), (100, 32, 2048064), (9999, 256, 8192064)],
)
def test_the_smallest_bucket_that_holds_a_call_serves_it(
    num_rows: int, lora_rank: int, bucket: int, gpu: torch.device
) -> None:
    config = choose_config(gpu, torch.bfloat16, num_rows=num_rows, lora_rank=lora_rank, dropout=False)
    assert config.min_programs == bucket


def test_what_was_not_tuned_falls_back(gpu: torch.device) -> None:
    assert choose_config(gpu, torch.float32, num_rows=1, lora_rank=16, dropout=False) == DEFAULT_CONFIG
    assert choose_config(gpu, torch.bfloat16, num_rows=1, lora_rank=16, dropout=True) == DEFAULT_CONFIG
    cpu = torch.device("cpu")
    assert choose_config(cpu, torch.bfloat16, num_rows=1, lora_rank=16, dropout=False) == DEFAULT_CONFIG


def test_a_file_keeps_its_entries_and_its_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "gpu.json"
    entries = [entry(2048, 16), entry(8192, 64, dropout=True)]
    write_tuned(path, tuned_document("Some GPU", "2026-11-24", entries))
    assert read_tuned(path, same_versions=True) == tuple(entries)
    monkeypatch.setattr(tuning, "versions", lambda: {"torch": "9"})
    assert read_tuned(path, same_versions=True) == ()
    assert read_tuned(path, same_versions=False) == tuple(entries)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu.json"
    write_tuned(path, tuned_document("Some GPU", "2026-11-24", [entry(2048, 16)]))

    def half(self: Path, text: str, *, encoding: str) -> None:
        with self.open("w", encoding=encoding) as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_tuned(path, tuned_document("Some GPU", "2026-11-25", [entry(8192, 64)]))
    assert read_tuned(path, same_versions=True) == (entry(2048, 16),)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}', '{"format": 2, "versions": {}, "entries": [{}]}'])
def test_a_damaged_file_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text, encoding="utf-8")
    assert read_tuned(path, same_versions=False) == ()


def test_the_cache_file_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.cache_file("NVIDIA H200") == tmp_path / "loraplex" / "kernels" / "nvidia-h200.json"


def test_every_shipped_file_can_be_read_and_says_what_it_was_made_with() -> None:
    files = sorted(SHIPPED.glob("*.json"))
    assert "nvidia-h200.json" in {path.name for path in files}
    for path in files:
        document = json.loads(path.read_text(encoding="utf-8"))
        assert {"gpu", "date", "versions"} <= document.keys()
        assert len(read_tuned(path, same_versions=False)) == len(document["entries"]) > 0
