"""What planning knows of a base model, from its config.json alone."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import BaseModel, find_base_model, load_tokenizer
from loraplex.planner.inputs.tiny_tokenizer import tiny_tokenizer

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QWEN = {"model_type": "qwen3", "num_hidden_layers": 28, "max_position_embeddings": 40960}


def write_model(folder: Path, config: Mapping[str, object]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_the_embedded_model_needs_no_folder(tmp_path: Path) -> None:
    assert find_base_model("tiny", relative_to=tmp_path) == BaseModel(
        name="tiny", folder=None, family="llama", num_layers=4, max_tokens=4096
    )


def test_a_folder_relative_to_the_job_file_or_absolute(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", QWEN)
    expected = BaseModel(name="base", folder=folder, family="qwen3", num_layers=28, max_tokens=40960)
    assert find_base_model("base", relative_to=tmp_path) == expected
    assert find_base_model(str(folder), relative_to=Path("/")).folder == folder


def test_a_hub_id_is_resolved_through_the_hubs_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "snapshot", QWEN)
    asked = []

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((name, allow_patterns, local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_base_model("Qwen/Qwen3-0.6B", relative_to=tmp_path).folder == folder
    # Planning never downloads weights. Without a tokenizer the cached folder is not complete.
    small = ["*.json", "*.jinja"]
    assert asked == [("Qwen/Qwen3-0.6B", small, True), ("Qwen/Qwen3-0.6B", small, False)]
    asked.clear()
    (folder / "tokenizer.json").touch()
    assert find_base_model("Qwen/Qwen3-0.6B", relative_to=tmp_path).on_hub
    assert asked == [("Qwen/Qwen3-0.6B", small, True)]


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        raise LocalEntryNotFoundError(f"cannot reach the hub for {name} {allow_patterns}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        JobError, match=r"'some/model' is no folder below .* could not be had from the hub .*; run `hf down"
    ):
        find_base_model("some/model", relative_to=tmp_path)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (None, "cannot be read"),
        ("{", "not readable as JSON"),
        ("[]", "is no list of settings"),
        (json.dumps({"model_type": "t5"}), "is of the family 't5'; trained are llama, mistral, qwen2, qwen3"),
        (json.dumps({"model_type": "llama"}), "has num_hidden_layers=None, which must be a whole number above 0"),
        (json.dumps({**QWEN, "num_hidden_layers": "28"}), "has num_hidden_layers='28', which must be a whole number"),
        (json.dumps({**QWEN, "num_hidden_layers": True}), "has num_hidden_layers=True, which must be a whole number"),
        (json.dumps({**QWEN, "num_hidden_layers": 0}), "has num_hidden_layers=0, which must be a whole number"),
        # What our decoder layers would compute otherwise than transformers, without a word.
        (json.dumps({**QWEN, "hidden_act": "gelu"}), "has hidden_act='gelu', where only 'silu' is trained; give"),
        (json.dumps({**QWEN, "attention_dropout": 0.1}), "has attention_dropout=0.1, where only 0 is trained; give"),
    ],
)
def test_folders_that_hold_no_model_we_train(tmp_path: Path, config: str | None, complaint: str) -> None:
    (tmp_path / "base").mkdir()
    if config is not None:
        (tmp_path / "base" / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(JobError, match=complaint):
        find_base_model("base", relative_to=tmp_path)


@pytest.mark.parametrize("change", [{"attention_dropout": 0.0}, {"hidden_act": "silu"}, {"rope_scaling": None}])
def test_what_most_configs_say_is_understood(tmp_path: Path, change: Mapping[str, object]) -> None:
    write_model(tmp_path / "base", {**QWEN, **change})
    assert find_base_model("base", relative_to=tmp_path).num_layers == 28


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../up"])
def test_what_is_neither_folder_nor_hub_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(JobError, match=r"is no folder below .*, no hub id and not 'tiny'"):
        find_base_model(name, relative_to=tmp_path)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("all-linear",), SEVEN),
        (("v_proj", "q_proj"), ("q_proj", "v_proj")),
        (("self_attn.q_proj", "q_proj"), ("q_proj",)),
        (("mlp.down_proj",), ("down_proj",)),
    ],
)
def test_targets_are_named_in_the_order_of_the_layer(wanted: tuple[str, ...], found: tuple[str, ...]) -> None:
    model = BaseModel(name="m", folder=None, family="mistral", num_layers=1, max_tokens=8)
    assert model.targets(wanted) == found


@pytest.mark.parametrize("wanted", ["proj", "lm_head", "layers.0.self_attn.q_proj", "Q_proj", "", "attn.q_proj"])
def test_targets_that_match_nothing_are_named_with_what_there_is(wanted: str) -> None:
    model = BaseModel(name="m", folder=None, family="llama", num_layers=1, max_tokens=8)
    with pytest.raises(JobError) as error:
        model.targets(("v_proj", wanted))
    assert str(error.value) == f"{wanted} matches no linear of m (llama); it has {', '.join(SEVEN)}, or say all-linear"


def test_a_folders_tokenizer_is_loaded_with_its_chat_template(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", QWEN)
    model = find_base_model("base", relative_to=tmp_path)
    with pytest.raises(JobError, match=r"has no tokenizer\.json"):
        load_tokenizer(model)
    tiny_tokenizer().save_pretrained(folder)
    assert load_tokenizer(model)("é").input_ids == [0xC3, 0xA9]
    assert load_tokenizer(model).chat_template == tiny_tokenizer().chat_template


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", QWEN)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(JobError, match="base: its tokenizer cannot be loaded"):
        load_tokenizer(find_base_model("base", relative_to=tmp_path))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(JobError, match=r"pip install 'loraplex\[train\]'"):
        load_tokenizer(find_base_model("tiny", relative_to=Path()))
