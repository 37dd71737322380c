"""`bench train` on a CPU with the tiny model: what is measured, that peers compute it rightly, what is written."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from loraplex.cli import app
from loraplex.engine import bench_train as bench_module
from loraplex.engine.base_folder import base_model_folder
from loraplex.engine.bench_train import ask, make_questions
from loraplex.engine.bench_train_laps import Laps, Measured, together
from loraplex.engine.bench_train_ours import plan_of
from loraplex.engine.bench_train_peers import ASSEMBLIES, Trainer, add_adapter, build_base, measure_peer, packed, padded
from loraplex.engine.bench_train_report import _bars, joined_with_earlier, write_results
from loraplex.engine.bench_train_spec import RECORD, SYSTEMS, Point, Question, growth_points, points_of
from loraplex.engine.bench_train_work import AdapterData, adapter_data, bounded_jobs, packs
from loraplex.engine.bench_train_worker import answer
from loraplex.planner.inputs.base_model import find_base_model
from loraplex.traces.errors import InputError
from loraplex.traces.workloads import sample_lengths

CPU = torch.device("cpu")
POINT = Point(workload="mix", dropout=0.1, num_adapters=4, microbatch_tokens=256, global_batch_size=2)


def question(system: str, *points: Point, model: str = "tiny") -> Question:
    return Question(
        system=system, model=model, random_weights=True, load_in_4bit=False, num_layers=None, device="cpu",
        seconds=0.01, recompute="none", attention="torch", lengths_folder=None, points=points or (POINT,),
    )  # fmt: skip


def test_a_question_survives_the_command_line() -> None:
    asked = question("ours", POINT, dataclasses.replace(POINT, dropout=0.0))
    assert Question.from_json(asked.to_json()) == asked


def test_dropout_is_asked_of_those_who_have_adapters() -> None:
    sizes = {"microbatch_tokens": 8192, "global_batch_size": 16}
    found = {
        system: [
            (point.workload, point.dropout)
            for point in points_of(system, workloads=("mix", "dialogsum"), dropouts=(0.0, 0.1), **sizes)
        ]
        for system in ("ours", "frozen")
    }
    assert found == {
        "ours": [("mix", 0.0), ("mix", 0.1), ("dialogsum", 0.0), ("dialogsum", 0.1)],
        "frozen": [("mix", 0.0), ("dialogsum", 0.0)],
    }
    grown = [(p.num_adapters, p.microbatch_tokens) for p in growth_points(microbatch_tokens=8192, dropout=0.0)]
    assert grown == [(1, 8192), (4, 8192), (16, 8192), (64, 8192), (4, 2048), (4, 4096), (4, 16384)]


def test_adapters_of_one_data_set_start_at_different_samples_and_long_ones_are_cut() -> None:
    point = Point(workload="dialogsum", dropout=0.0, num_adapters=4, microbatch_tokens=300, global_batch_size=2)
    found = adapter_data(point, question("ours"))
    whole = [min(length, 300) for length in sample_lengths("dialogsum", num_samples=12460, seed=0)]
    assert [one.lengths[:3] for one in found] == [tuple(whole[start : start + 3]) for start in (0, 3115, 6230, 9345)]
    assert {sum(one.lengths) for one in found} == {sum(whole)}


def test_the_data_sets_themselves_are_read_from_a_folder(tmp_path: Path) -> None:
    for name, length in (("gsm8k", 5), ("dialogsum", 7), ("scitldr_a", 1), ("qmsum_span", 9000)):
        (tmp_path / f"{name}.csv").write_text(f"num_tokens\n{length}\n")
    asked = dataclasses.replace(question("ours"), lengths_folder=str(tmp_path))
    point = dataclasses.replace(POINT, microbatch_tokens=16384)
    # one token predicts nothing, and 8192 are the most
    assert [one.lengths for one in adapter_data(point, asked)] == [(5,), (7,), (2,), (8192,)]


def test_packs_hold_whole_samples_and_lose_none() -> None:
    lengths = sample_lengths("gsm8k", num_samples=300, seed=1)
    found = list(packs(lengths, capacity=1000))
    assert sorted(length for pack in found for length in pack) == sorted(lengths)
    assert max(map(sum, found)) <= 1000
    assert sum(map(sum, found)) / len(found) > 930


def test_each_adapter_brings_the_same_share_of_its_data() -> None:
    data = [AdapterData(dataset=name, lengths=(length,) * 1000) for name, length in (("a", 10), ("b", 40))]
    point = Point(workload="mix", dropout=0.1, num_adapters=2, microbatch_tokens=500, global_batch_size=4)
    jobs = bounded_jobs(data, point, question("ours"), num_microbatches=8, full=1.0)
    assert [job.num_samples() for job in jobs] == [80, 80]
    assert [job.target_tokens(0) for job in jobs] == [4 * 9, 4 * 39]
    answers = bounded_jobs(data, point, question("ours-targets"), num_microbatches=8, full=1.0)
    assert [job.target_tokens(0) for job in answers] == [4 * 2, 4 * 10]
    off = bounded_jobs(data, point, question("ours-adapters-off"), num_microbatches=8, full=1.0)
    assert {job.lora.target_modules for job in off} == {("layers.0.self_attn.q_proj",)}
    assert [job.global_batches for job in off] == [job.global_batches for job in jobs]


def test_the_plan_that_is_timed_is_full_and_mixes_adapters() -> None:
    point = Point(workload="mix", dropout=0.0, num_adapters=4, microbatch_tokens=8192, global_batch_size=16)
    plan = plan_of(point, question("ours"))
    tokens = [held.num_tokens() for held in plan.microbatches]
    assert sum(tokens) / len(tokens) > 0.98 * 8192
    assert any(len(held.global_batches()) > 1 for held in plan.microbatches)


def test_several_runs_weigh_as_many_tokens_as_they_stand_for() -> None:
    slow, fast = (
        Measured(tokens_per_s=rate, spread=0.1 * rate, num_microbatches=3, num_tokens=5) for rate in (1.0, 4.0)
    )
    # 8 s for 8 tokens and 2 s for 8 tokens
    assert together([(slow, 8), (fast, 8)]) == Measured(tokens_per_s=1.6, spread=0.4, num_microbatches=6, num_tokens=10)
    # Adapters of one data set share a measurement, which was made once.
    assert together([(slow, 8), (slow, 8)]) == slow


def test_laps_leave_the_first_pass_out_and_say_when_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    # the start, two laps, the end of the warm-up, four laps, and whether it is enough
    clock = iter([0.0, 70.0, 80.0, 80.0, 84.0, 85.0, 87.0, 88.0, 88.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    laps = Laps(CPU, seconds=8.0)
    turns = []
    for _ in range(3):
        for tokens in (10, 20):
            laps.lap(tokens)
        turns.append(laps.turn())
    assert turns == [False, False, True]
    # 30 tokens in 5 s and in 3, and not the 80 s in which kernels were compiled
    assert laps.measured() == Measured(tokens_per_s=8.0, spread=0.5, num_microbatches=4, num_tokens=60)


def test_a_warm_up_alone_has_no_speed() -> None:
    laps = Laps(CPU, seconds=0.0)
    laps.lap(5)
    assert not laps.turn()
    with pytest.raises(ValueError, match="1 microbatches are all warm-up"):
        laps.measured()


def test_a_peer_is_timed_over_the_microbatches_that_warmed_it(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    train = Trainer.train

    def watched(self: Trainer, batch: dict[str, Any], *, num_samples: int) -> None:
        seen.append(batch["packed_rows"].sample_lengths)
        train(self, batch, num_samples=num_samples)

    monkeypatch.setattr(Trainer, "train", watched)
    point = dataclasses.replace(POINT, workload="dialogsum")
    measured, _ = measure_peer(tiny("peft-packed"), point, dataclasses.replace(question("peft-packed"), seconds=0.0))
    assert measured.num_microbatches == 8
    assert seen[:4] == seen[4:8] == seen[8:]
    assert len(set(seen)) == 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(base, folder) of a peer on the tiny model."""
    model = find_base_model("tiny", relative_to=Path.cwd(), random_weights=True)
    folder = base_model_folder(model, output_dir=tmp_path_factory.mktemp("base"))
    return lambda name: build_base(folder, ASSEMBLIES[name], model=model, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("system", ["peft-packed", "peft-padded", "frozen"])
def test_a_peers_loss_is_that_of_its_samples_one_by_one(system: str, tiny: Any) -> None:
    assembly = dataclasses.replace(ASSEMBLIES[system], autocast=False)
    model = add_adapter(tiny(system), assembly, dropout=0.0)
    data = AdapterData(dataset="gsm8k", lengths=(5, 9, 3, 7))
    point = dataclasses.replace(POINT, microbatch_tokens=24)
    batches = padded(data, 4, 262, CPU) if assembly.padded else packed(data, point, 262, CPU)
    batch, num_samples, num_tokens = next(batches)
    assert (num_samples, num_tokens) == (4, 24)
    ids = batch["input_ids"]
    samples = [row[:length] for row, length in zip(ids, data.lengths, strict=False)]
    if not assembly.padded:
        samples = list(torch.split(ids[0], list(data.lengths)))
    plain = tiny("peft-padded")
    with torch.no_grad():
        sums = [cross_entropy(plain(sample[None]).logits[0, :-1], sample[1:], reduction="sum") for sample in samples]
    trainer = Trainer(model, assembly, global_batch_size=4, device=CPU)
    trainer.train(batch, num_samples=num_samples)
    torch.testing.assert_close(trainer.loss, torch.stack(sums).sum() / (24 - 4))


def test_a_padded_batch_that_does_not_fit_is_halved_and_said_so(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trainer.train

    def scarce(self: Trainer, batch: dict[str, Any], *, num_samples: int) -> None:
        if num_samples > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        train(self, batch, num_samples=num_samples)

    monkeypatch.setattr(Trainer, "train", scarce)
    base = tiny("peft-padded")
    point = dataclasses.replace(POINT, workload="dialogsum", microbatch_tokens=16)
    _, facts = measure_peer(base, point, question("peft-padded"))
    assert facts["note"] == (
        "dialogsum: out of memory with 4 samples, measured with 2; "
        "dialogsum: out of memory with 2 samples, measured with 1"
    )
    # and the base is as it was
    assert not any("lora" in name for name, _ in base.named_modules())


def test_a_step_follows_a_global_batch(tiny: Any) -> None:
    model = add_adapter(tiny("peft-packed"), ASSEMBLIES["peft-packed"], dropout=0.0)
    trainer = Trainer(model, ASSEMBLIES["peft-packed"], global_batch_size=3, device=CPU)
    matrices = {name: tensor for name, tensor in model.named_parameters() if "lora_B" in name}
    moved = []
    data, point = AdapterData(dataset="gsm8k", lengths=(5, 9) * 8), dataclasses.replace(POINT, microbatch_tokens=14)
    batches = packed(data, point, 262, CPU)
    for (batch, num_samples, _), _turn in zip(batches, range(3), strict=False):
        trainer.train(batch, num_samples=num_samples)
        moved.append(all(bool(tensor.any()) for tensor in matrices.values()))
    assert moved == [False, True, True]


@pytest.mark.parametrize("system", ["ours", "ours-adapters-off", "peft-packed-bf16"])
def test_every_point_gives_a_flat_record(system: str) -> None:
    points = (POINT, dataclasses.replace(POINT, dropout=0.0, workload="dialogsum"))
    found = list(answer(question(system, *points)))
    assert [(record["system"], record["workload"], record["dropout"]) for record in found] == [
        (system, "mix", 0.1), (system, "dialogsum", 0.0),
    ]  # fmt: skip
    for record in found:
        assert "skipped" not in record
        assert record["peak_memory_gib"] is None
        expected = sum(one.num_tokens() for one in adapter_data(POINT, question(system)))
        if record["workload"] == "mix":
            assert record["hours_for_all_jobs"] == pytest.approx(expected / record["tokens_per_s"] / 3600, rel=1e-2)
        assert all(isinstance(value, (str, int, float, type(None))) for value in record.values())


def test_who_cannot_run_here_is_recorded_with_the_reason() -> None:
    found = {system: next(iter(answer(question(system))))["skipped"] for system in ("frozen-liger", "unsloth")}
    assert found == {"frozen-liger": "Liger's kernels need a GPU", "unsloth": "unsloth is not installed"}


def test_a_process_that_breaks_down_is_recorded_too() -> None:
    (record,) = ask(question("ours", model="nowhere"))
    assert record["system"] == "ours"
    assert "its process ended with 1" in record["skipped"]
    assert "'nowhere' is no folder" in record["skipped"]


def bench_train(folder: Path, *words: str) -> tuple[Path, Any, str]:
    """`bench train` of the tiny model: the file that it writes, what stands in it, what is printed."""
    done = CliRunner().invoke(app, [
        "bench", "train", "--model", "tiny", "--random-weights", "--device", "cpu", "--seconds", "0.1",
        "--microbatch-tokens", "256", "--global-batch-size", "2", "--workload", "dialogsum", "--system", "ours",
        "-o", str(folder), "--json", *words,
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    (path,) = folder.glob("train-*.json")
    return path, json.loads(path.read_text()), done.stdout


def test_the_command_writes_json_csv_and_a_plot(tmp_path: Path) -> None:
    path, document, printed = bench_train(tmp_path, "--dropout", "0.1", "--system", "unsloth")
    assert path.name.startswith("train-cpu-")
    assert json.loads(printed) == document
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".csv", ".png"}
    ours, unsloth = document["records"]
    assert ours["tokens_per_s"] > 0
    assert unsloth["skipped"] == "unsloth is not installed"
    assert document["systems"] == {"ours": SYSTEMS["ours"], "unsloth": SYSTEMS["unsloth"]}
    fresh = document | {"command": "again", "systems": {"unsloth": "now"}, "records": []}
    assert joined_with_earlier(tmp_path, path.stem, fresh) == document | {
        "command": f"{document['command']} && again",
        "systems": {"ours": SYSTEMS["ours"], "unsloth": "now"},
    }
    with pytest.raises(InputError, match="is of gpu cpu, not another; leave --add out"):
        joined_with_earlier(tmp_path, path.stem, fresh | {"gpu": "another"})
    added, changed = ({**document["versions"], package: "9"} for package in ("unsloth", "torch"))
    joined = joined_with_earlier(tmp_path, path.stem, fresh | {"versions": added})
    assert joined["versions"] == added
    with pytest.raises(InputError, match=r"is of torch .*, not 9; leave --add out"):
        joined_with_earlier(tmp_path, path.stem, fresh | {"versions": changed})


def test_results_of_the_same_day_are_not_written_over_and_may_be_added_to(tmp_path: Path) -> None:
    path, first, _ = bench_train(tmp_path, "--dropout", "0")
    kept = path.read_text()
    words = ["bench", "train", "--model", "tiny", "--random-weights", "--device", "cpu", "-o", str(tmp_path)]
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, InputError)
    assert str(again.exception) == (
        f"{path} holds results of today; keep them with --add, move them away, or give another folder"
    )
    assert path.read_text() == kept
    # another dropout of the same system stands beside the first
    _, both, _ = bench_train(tmp_path, "--dropout", "0.1", "--add")
    assert both["records"][:-1] == first["records"]
    assert [record["dropout"] for record in both["records"]] == [0.0, 0.1]


def test_a_base_in_4_bits_has_a_file_of_its_own(tmp_path: Path) -> None:
    path, document, _ = bench_train(tmp_path, "--dropout", "0", "--load-in-4bit")
    assert path.name.startswith("train-nf4-cpu-")
    assert document["load_in_4bit"] is True
    assert document["records"][0]["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"systems": ("theirs",)}, "--system theirs is unknown; choose from peft-padded"),
        ({"systems": ("frozen",), "load_in_4bit": True}, "--system frozen is unknown; choose from ours, ours-targets"),
        ({"workloads": ("chat",)}, "--workload chat is unknown; choose from mix, dialogsum"),
        ({"attention": "sdpa"}, "--attention sdpa is unknown; choose from auto, torch, flash"),
        (
            {"attention": "flash"},
            "--attention flash: FlashAttention-4 needs a GPU, .* cpu; install the extra flash",
        ),
        ({"recompute": "half"}, "--recompute half is unknown; choose from none"),
        ({"random_weights": False, "model": "llama-3.1-8b"}, "is a shape without weights"),
        ({"lengths_folder": Path("nowhere")}, "--lengths nowhere is no folder"),
    ],
)
def test_wrong_choices_are_refused_before_anything_runs(changed: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "model": "tiny", "random_weights": True, "load_in_4bit": False, "num_layers": None, "device": "cpu",
        "attention": "auto", "systems": (), "workloads": (), "dropouts": (), "seconds": 1.0, "microbatch_tokens": 8192,
        "global_batch_size": 16, "recompute": "none", "growth": False, "lengths_folder": None,
    }  # fmt: skip
    assert [asked.system for asked in make_questions(**right)] == list(SYSTEMS)
    assert {asked.attention for asked in make_questions(**right)} == {"torch"}
    with pytest.raises(InputError, match=message):
        make_questions(**(right | changed))


def test_growth_is_drawn_over_adapters_and_over_microbatches(tmp_path: Path) -> None:
    points = growth_points(microbatch_tokens=8192, dropout=0.0)
    records = [question("ours").named(point) | {"tokens_per_s": 100.0 + place} for place, point in enumerate(points)]
    document = {"model": "tiny", "gpu": "cpu", "load_in_4bit": False, "growth": True, "records": records}
    paths = write_results(tmp_path, "train-growth", document)
    assert [path.name for path in paths] == ["train-growth.json", "train-growth.csv", "train-growth.png"]
    assert json.loads(paths[0].read_text()) == document
    assert paths[1].read_text().splitlines()[0] == (
        "system,attention,recompute,workload,dropout,num_adapters,microbatch_tokens,global_batch_size,tokens_per_s"
    )
    assert paths[2].stat().st_size > 10_000


STUBBORN = """#!/bin/sh
{trap}
echo '{record}{{"pid": '$$'}}'
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("trap", ["", "trap '' INT"])
@pytest.mark.parametrize("why", [KeyboardInterrupt, GeneratorExit])
def test_a_system_that_is_asked_no_further_measures_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str, why: type[BaseException]
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(STUBBORN.format(trap=trap, record=RECORD), encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setattr(bench_module, "_GRACE_S", 0.5)
    answers = ask(question("ours"))
    process = next(answers)["pid"]
    os.kill(process, 0)
    with pytest.raises(why):
        answers.throw(why)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_system_that_ends_by_itself_is_not_told_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As one does that a terminal's Ctrl-C has reached: while it clears up, nothing must come between.
    stand_in, told = tmp_path / "python", tmp_path / "told"
    stand_in.write_text(f"#!/bin/sh\ntrap 'touch {told}' INT\necho '{RECORD}{{}}'\nsleep 0.2\n", encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    answers = ask(question("ours"))
    next(answers)
    with pytest.raises(KeyboardInterrupt):
        answers.throw(KeyboardInterrupt)
    assert not told.exists()


def test_ctrl_c_names_the_file_of_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(questions: Any) -> Any:
        (one,) = questions
        yield {**one.named(one.points[0]), "skipped": "not asked"}
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_module, "ask_all", interrupted)
    words = ["bench", "train", "--model", "tiny", "--device", "cpu", "--system", "ours", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    (path,) = tmp_path.iterdir()
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == f"loraplex: stopped; what was measured is in {path}"
    assert len(json.loads(path.read_text(encoding="utf-8"))["records"]) == 1


def test_bars_say_where_a_system_was_not_run() -> None:
    from matplotlib.figure import Figure

    records = [
        {"system": system, "workload": workload, "dropout": 0.0, "tokens_per_s": 1.0, "attention": "torch"}
        for system, workload in (("ours", "mix"), ("ours", "dialogsum"), ("peft-packed", "dialogsum"))
    ]
    mix, dialogsum = Figure().subplots(1, 2)
    _bars((mix, dialogsum), [record | {"recompute": "none"} for record in records])
    assert [text.get_text().strip() for text in mix.texts if "run" in text.get_text()] == ["not run"]
    assert not any("run" in text.get_text() for text in dialogsum.texts)
