"""One attention for all packed systems of a `bench train`: which, who is told, and rows of both side by side."""

import dataclasses
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loraplex.engine.bench_train import ask
from loraplex.engine.bench_train_attention import settled_attention
from loraplex.engine.bench_train_peers import ASSEMBLIES
from loraplex.engine.bench_train_report import joined_with_earlier, results_table, with_record, write_results
from loraplex.engine.bench_train_spec import PADDED, Point, Question
from loraplex.engine.flash_attention import ATTENTION
from loraplex.planner.inputs.base_model import find_base_model
from loraplex.traces.errors import InputError

POINT = Point(workload="mix", dropout=0.1, num_adapters=4, microbatch_tokens=256, global_batch_size=2)
ASKED = Question(
    system="ours", model="tiny", random_weights=True, load_in_4bit=False, num_layers=None, device="cuda",
    seconds=0.01, recompute="none", attention="flash", lengths_folder=None, points=(POINT,),
)  # fmt: skip
SERVED = find_base_model("llama-3.1-8b", relative_to=Path.cwd(), random_weights=True)


def pretend(monkeypatch: pytest.MonkeyPatch, *, why_not: str | None) -> None:
    """A GPU that can or cannot have FlashAttention-4, as the process that looks says last of all."""

    def run(_command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout=f"what a library prints\n{json.dumps(why_not)}\n")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("asked", "environment", "why_not", "settled"),
    [
        ("auto", "auto", None, "flash"),
        ("auto", "auto", "it is not installed", "torch"),
        ("auto", "torch", None, "torch"),
        ("flash", "torch", None, "flash"),
        ("torch", "flash", None, "torch"),
    ],
)
def test_it_is_what_is_asked_for_then_what_the_environment_says_then_what_is_there(
    monkeypatch: pytest.MonkeyPatch, asked: str, environment: str, why_not: str | None, settled: str
) -> None:
    pretend(monkeypatch, why_not=why_not)
    monkeypatch.setenv(ATTENTION, environment)
    assert settled_attention(asked, device="cuda", model=SERVED) == settled


@pytest.mark.parametrize("environment", ["auto", "flash"])
def test_flash_that_cannot_be_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch, environment: str) -> None:
    pretend(monkeypatch, why_not="FlashAttention-4 is not installed")
    monkeypatch.setenv(ATTENTION, environment)
    asked = "auto" if environment == "flash" else "flash"
    with pytest.raises(InputError, match="--attention flash: FlashAttention-4 is not installed; install the extra"):
        settled_attention(asked, device="cuda", model=SERVED)


def test_a_model_whose_heads_it_does_not_serve_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, why_not=None)
    model = dataclasses.replace(SERVED, config={**SERVED.config, "head_dim": 96})
    assert settled_attention("auto", device="cuda", model=model) == "torch"
    with pytest.raises(InputError, match="heads of 96 stay with torch, only those of 64 and 128 do not"):
        settled_attention("flash", device="cuda", model=model)


def test_every_process_is_told_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, str] = {}

    def popen(_command: list[str], *, env: dict[str, str], **_options: Any) -> None:
        told.update(env)
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setenv(ATTENTION, "torch")
    with pytest.raises(FileNotFoundError):
        list(ask(ASKED))
    assert told[ATTENTION] == "flash"
    assert "PATH" in told


def test_padded_batches_attend_under_a_mask_whatever_the_others_do() -> None:
    assert {name for name, assembly in ASSEMBLIES.items() if assembly.padded} == set(PADDED)
    padded = dataclasses.replace(ASKED, system="peft-padded")
    assert [asked.named(POINT)["attention"] for asked in (ASKED, padded)] == ["flash", "sdpa"]


def figures(asked: Question, rate: float) -> dict[str, Any]:
    return asked.named(POINT) | {"tokens_per_s": rate, "peak_memory_gib": None, "hours_for_all_jobs": 1.0}


def test_rows_of_both_lie_side_by_side_and_are_told_apart(tmp_path: Path) -> None:
    padded, torch_s = (dataclasses.replace(ASKED, system=name, attention="torch") for name in ("peft-padded", "ours"))
    document = {
        "model": "tiny", "gpu": "cpu", "versions": {}, "growth": False, "command": "first",
        "note": "said of the first",
        "systems": {"ours": "", "peft-padded": ""}, "records": [figures(padded, 1.0), figures(torch_s, 2.0)],
    }  # fmt: skip
    write_results(tmp_path, "train", document)
    second = {key: value for key, value in document.items() if key != "note"}
    second |= {"command": "second", "systems": {"ours": ""}, "records": []}
    joined = joined_with_earlier(tmp_path, "train", second)
    assert joined["note"] == "said of the first"
    joined["records"] = with_record(joined["records"], figures(ASKED, 3.0))
    assert [(record["system"], record["attention"]) for record in joined["records"]] == [
        ("peft-padded", "sdpa"), ("ours", "torch"), ("ours", "flash"),
    ]  # fmt: skip
    # the same again takes the place of what it was, and of nothing else
    anew = with_record(joined["records"], figures(ASKED, 4.0))
    assert anew == [*joined["records"][:2], figures(ASKED, 4.0)]
    elsewhere = ASKED.named(dataclasses.replace(POINT, dropout=0.5))
    assert with_record(joined["records"], elsewhere) == [*joined["records"], elsewhere]
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(results_table(joined["records"]))
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in console.export_text().splitlines()]
    assert [row for row in cells if row and row[0] in ("ours", "peft-padded")] == [
        ["peft-padded", "sdpa"], ["ours", "torch"], ["ours", "flash"],
    ]  # fmt: skip


def test_bars_are_named_by_attention_where_there_is_more_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    named: list[list[str]] = []
    monkeypatch.setattr(Axes, "set_yticks", lambda _self, _places, names: named.append(names))
    padded, torch_s = (dataclasses.replace(ASKED, system=name, attention="torch") for name in ("peft-padded", "ours"))
    one, both = [padded, torch_s], [padded, torch_s, ASKED]
    for asked in (one, both):
        records = [figures(each, 1.0 + place) for place, each in enumerate(asked)]
        write_results(tmp_path, "train", {"model": "tiny", "gpu": "cpu", "growth": False, "records": records})
    assert named == [["peft-padded", "ours"], ["peft-padded", "ours, torch", "ours, flash"]]


def test_bars_of_which_the_file_says_more_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    told: list[list[str]] = []
    monkeypatch.setattr(Axes, "bar_label", lambda _self, _bars, labels, **_how: told.append(labels))
    other = dataclasses.replace(ASKED, attention="torch")
    records = [figures(ASKED, 1500.0), figures(other, 1400.0) | {"note": "on another GPU"}]
    write_results(tmp_path, "train", {"model": "tiny", "gpu": "cpu", "growth": False, "records": records})
    assert told == [["1,500", "1,400 *"]]
