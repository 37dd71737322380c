"""`loraplex parity`: equal where it is equal, and not fooled by a faulty engine."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraplex.cli import main
from loraplex.engine import execute
from loraplex.engine.parity import ParityRow, check_parity
from loraplex.kernels import checks
from loraplex.planner.inputs import jobfile

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def loaded(three_jobs: Any, tokens_of: Any) -> Any:
    """What load_jobs would give, as far as parity reads it."""
    jobs = three_jobs(num_steps=5, dropout=0.2)
    return SimpleNamespace(
        jobs=jobs,
        settings=SimpleNamespace(num_stages=2, microbatch_tokens=64),
        tokens=tokens_of(jobs).tokens,
    )


def test_every_adapter_is_compared_with_peft_and_those_with_dropout_with_themselves(
    loaded: Any, model_folder: Path
) -> None:
    heard: list[tuple[str, float]] = []
    rows = check_parity(
        loaded,
        model_folder,
        num_steps=3,
        dtype=torch.float64,
        progress=lambda label, share: heard.append((label, share)),
    )
    assert [(row.adapter, row.against, row.steps) for row in rows] == [
        ("job0", "peft", 3),
        ("job1", "peft", 3),
        ("job2", "peft", 3),
        ("job0", "engine", 3),
        ("job1", "engine", 3),
    ]
    for row in rows:
        assert row.is_equal()
        assert row.max_weight_difference < 1e-10
        assert row.max_loss_difference < 1e-10
        assert row.max_weight_change > 1e-3
    assert [label for label, _ in heard] == [
        "parity: all together, without dropout",
        "parity: job0 alone in peft",
        "parity: job1 alone in peft",
        "parity: job2 alone in peft",
        "parity: all together, with dropout",
        "parity: job0 alone in our engine",
        "parity: job1 alone in our engine",
    ]
    assert [share for _, share in heard] == [place / 7 for place in range(7)]


def test_a_faulty_engine_is_found_out(loaded: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(execute, "adapter_losses")  # noqa: B009
    monkeypatch.setattr(execute, "adapter_losses", lambda *given: tuple(1.01 * part for part in real(*given)))
    rows = check_parity(loaded, model_folder, num_steps=2, dtype=torch.float64)
    # AdamW hides a constant factor from the weights, never from the losses; clipping and eps let some of it through.
    assert all(row.max_loss_difference > 1e-2 for row in rows if row.against == "peft")
    assert not all(row.is_equal() for row in rows)


def test_a_job_file_allows_the_ranks_that_the_kernels_hold() -> None:
    assert jobfile.MAX_LORA_RANK == checks.MAX_LORA_RANK


@pytest.mark.parametrize(
    "entry",
    ["{name: a, datasets: [{path: demo:x}], r: 257}", "{name: a, datasets: [{path: demo:x}], grid: {r: [8, 257]}}"],
)
def test_a_rank_above_is_told_when_the_job_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], entry: str
) -> None:
    job = tmp_path / "jobs.yaml"
    job.write_text(f"base_model: tiny\nadapters:\n  - {entry}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["loraplex", "parity", str(job)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "input should be less than or equal to 256, not 257" in err
    assert "Traceback" not in err


def test_apart_is_apart() -> None:
    row = ParityRow(
        adapter="a",
        against="peft",
        steps=1,
        max_weight_difference=2e-4,
        max_loss_difference=0.0,
        mean_loss_difference=0.0,
        max_weight_change=1.0,
        limit=1e-4,
    )
    assert not row.is_equal()
    assert replace(row, judged_by="losses").is_equal()


def test_in_half_precision_losses_are_compared_with_those_of_peft(loaded: Any, model_folder: Path) -> None:
    rows = check_parity(loaded, model_folder, num_steps=3, dtype=torch.bfloat16)
    assert {row.judged_by for row in rows} == {"losses"}
    assert all(row.is_equal() and 0 <= row.mean_loss_difference <= row.max_loss_difference for row in rows)
    # Rounding is seen, and no more than rounding.
    assert 0 < max(row.max_loss_difference for row in rows) < 2e-2


def test_the_command_on_a_users_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        json.dumps({"prompt": f"{number} is", "completion": " odd" if number % 2 else " even"}) for number in range(9)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(
        "base_model: tiny\nsequence_len: 64\nadapters:\n"
        "  - {name: a, r: 4, learning_rate: 2e-3, global_batch_size: 3, datasets: [{path: texts.jsonl}]}\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(
        sys, "argv", ["loraplex", "parity", str(tmp_path / "jobs.yaml"), "--json", "--dtype", "float64"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert said["equal"] is True
    assert [(row["adapter"], row["against"], row["steps"]) for row in said["rows"]] == [("a", "peft", 3)]
