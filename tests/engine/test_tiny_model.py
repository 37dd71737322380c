"""The embedded model's folder: real files, always the same."""

import hashlib
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loraplex.engine.base_folder import base_model_folder
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.planner.inputs.base_model import TINY_CONFIG, find_base_model


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_files_and_another_seed_other_weights(tmp_path: Path) -> None:
    first, again, other = (
        hashes(write_tiny_model(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert sorted(name for name in first if first[name] != other[name]) == sorted(
        name for name in first if name.endswith(".safetensors")
    )
    assert sum(name.endswith(".safetensors") for name in first) > 1


def test_transformers_reads_it(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert {key: getattr(config, key) for key in TINY_CONFIG if key != "architectures"} == {
        key: value for key, value in TINY_CONFIG.items() if key != "architectures"
    }
    assert config.architectures == ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    logits = model(**tokenizer("größe", return_tensors="pt")).logits
    assert logits.shape == (1, 7, 262)


def test_a_run_writes_it_once(tmp_path: Path) -> None:
    tiny = find_base_model("tiny", relative_to=tmp_path)
    folder = base_model_folder(tiny, output_dir=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert base_model_folder(tiny, output_dir=tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["base-model"]


def test_a_folder_of_ones_own_is_used_where_it_lies(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "mine")
    model = find_base_model("mine", relative_to=tmp_path)
    assert base_model_folder(model, output_dir=tmp_path / "output") == tmp_path / "mine"
    assert not (tmp_path / "output").exists()
