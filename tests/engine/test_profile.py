"""Profiles: what is measured, how it becomes costs. No time is asserted."""

import json
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loraplex.engine import profile as profile_module
from loraplex.engine.commands import profile as profile_command
from loraplex.engine.measure import measure_link, measure_stages
from loraplex.engine.message import Wire
from loraplex.engine.model import Layout
from loraplex.engine.profile import _surplus, measure_profile, profile_model
from loraplex.engine.profile_plan import default_jobs, measuring_plan, measuring_program
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import BaseModel
from loraplex.planner.program import ActionKind
from loraplex.traces.costs import CostProfile, CostTerms, uniform_profile


def test_the_default_jobs_are_two_adapters_with_and_without_dropout() -> None:
    jobs = default_jobs(sequence_len=300)
    assert [(job.lora.r, job.lora.lora_dropout, job.num_samples()) for job in jobs] == [(16, 0.0, 128), (16, 0.1, 128)]
    lengths = [s.num_tokens for job in jobs for batch in job.global_batches for s in batch]
    assert 16 <= min(lengths) < 20
    assert 250 < max(lengths) <= 300


def test_measured_are_parts_of_planned_microbatches_of_many_sizes(three_jobs: Any) -> None:
    plan = measuring_plan(three_jobs(), capacity_tokens=60, num_stages=3)
    sizes = [batch.num_tokens() for batch in plan.microbatches]
    assert len(sizes) == 4 * 12
    assert max(sizes) <= 60
    assert min(sizes) < 20
    assert {len(batch.adapter_tokens()) for batch in plan.microbatches} >= {1, 2}
    # Every adapter's samples are numbered in the order in which they come, and a batch spans two microbatches.
    for adapter in range(3):
        own = [s for batch in plan.microbatches for s in batch.samples if s.adapter == adapter]
        assert [s.index for s in own] == list(range(len(own)))
        held = [k for batch in plan.microbatches for a, k in batch.global_batches() if a == adapter]
        assert held == [place // 2 for place in range(len(held))]
        assert tuple(s for batch in plan.jobs[adapter].global_batches for s in batch) == tuple(own)


def test_each_is_run_forward_and_back_and_stepped_when_its_batch_is_whole(three_jobs: Any) -> None:
    plan = measuring_plan(three_jobs(), capacity_tokens=60, num_stages=3)
    program = measuring_program(plan)
    actions = list(program.actions(stage=1))
    kinds = [action.kind for action in actions]
    assert all(later is ActionKind.BACKWARD for kind, later in pairwise(kinds) if kind is ActionKind.FORWARD)
    steps = {(a.adapter, a.global_batch) for a in actions if a.kind is ActionKind.STEP}
    assert steps == {batch for held in plan.microbatches for batch in held.global_batches()}


def test_an_ends_surplus_is_fitted_and_never_negative() -> None:
    tokens = np.array([10, 20, 40, 80])
    found = _surplus(tokens, 0.5 + 0.25 * tokens)
    assert (found.fixed_ms, found.per_token_ms) == pytest.approx((0.5, 0.25))
    assert _surplus(tokens, -0.1 - 0.01 * tokens) == CostTerms()
    # Noise around nothing is nothing, or next to it.
    assert _surplus(tokens, np.array([0.1, -0.1, 0.1, -0.1])).ms(tokens=40) < 0.06


@pytest.fixture
def profiles(model_folder: Path, three_jobs: Any) -> list[CostProfile]:
    """What three workers make of the small model; the third takes no part in measuring the link."""
    base = BaseModel(name="small", folder=model_folder, family="llama", num_layers=4, max_tokens=4096)
    board = Switchboard(3, timeout_s=60)
    found: dict[int, CostProfile] = {}

    def work(worker: int) -> None:
        found[worker] = measure_profile(
            base,
            model_folder,
            three_jobs(dropout=0.1),
            RendezvousTransport(board, worker),
            num_stages=3,
            capacity_tokens=60,
            seconds=0.1,
        )

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[worker] for worker in range(3)]


def test_a_measured_profile_is_whole_and_survives_its_file(profiles: list[CostProfile], tmp_path: Path) -> None:
    profile = profiles[0]
    assert (profile.name, profile.origin, profile.num_layers) == ("small-cpu", "measured", 4)
    assert "3 processes side by side" in profile.source
    profile.save(tmp_path / "profile.json")
    assert CostProfile.load(tmp_path / "profile.json") == profile
    for stage in profile.stages(num_stages=2):
        given = {"tokens": 40, "squares": 600, "targets": 20, "adapters": 2}
        assert stage.forward_ms(**given) > 0
        assert stage.backward_ms(**given) > 0
        assert stage.step_ms > 0
    assert profile.link.latency_ms + 1 / profile.link.bytes_per_ms > 0
    assert profile.fit_error_median is not None
    # 7 linears and 2 norms a layer, embedding and head of 64 x 32, in float32; beside them the rotary frequencies.
    layer = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    assert profile.memory.layer_weight_bytes == pytest.approx(layer, rel=1e-3)
    assert profile.memory.embedding_weight_bytes == 4 * 64 * 32
    assert profile.memory.head_weight_bytes == 4 * (64 * 32 + 32)
    assert profile.memory.boundary_bytes_per_token == 4 * 32


def test_what_a_forward_keeps_is_foretold_for_microbatches_of_another_size(
    model_folder: Path, three_jobs: Any, profiles: list[CostProfile]
) -> None:
    # The profile saw microbatches of up to 60 tokens in stages of two layers; here they hold up to 200, in one layer.
    board = Switchboard(1, timeout_s=60)
    layouts = [Layout(stage=place, num_stages=3, first_layer=0, end_layer=1) for place in range(3)]
    _, middle, last = measure_stages(
        model_folder,
        three_jobs(dropout=0.1),
        layouts,
        RendezvousTransport(board, 0),
        num_workers=1,
        capacity_tokens=200,
        seconds=0.1,
    )
    large = middle.loads.tokens > 60
    assert large.sum() > 5
    memory = profiles[0].memory
    layer = memory.activation_bytes_per_token_layer * middle.loads.tokens
    logits = memory.logit_bytes_per_target * last.loads.targets
    assert layer[large].sum() == pytest.approx(middle.kept_bytes[large].sum(), rel=0.1)
    assert (layer + logits)[large].sum() == pytest.approx(last.kept_bytes[large].sum(), rel=0.1)
    # At the least the log-probabilities of the 64 words in float32.
    assert memory.logit_bytes_per_target > 4 * 64


def test_a_link_is_measured_by_round_trips() -> None:
    board = Switchboard(3, timeout_s=20)
    wire = Wire(hidden_size=8, dtype=torch.float32)
    found: dict[int, list[float]] = {}

    def work(worker: int) -> None:
        found[worker] = measure_link(RendezvousTransport(board, worker), wire, num_tokens=(1, 100))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ms > 0 for worker in (0, 1) for ms in found[worker])
    assert found[2] == []


@pytest.mark.parametrize(
    ("model", "num_stages", "capacity_tokens", "message"),
    [
        ("absent", 2, 64, "'absent' is no folder below"),
        ("tiny", 5, 64, "5 stages exceed the 4 layers of tiny; lower --stages"),
        ("tiny", 2, 5000, "--microbatch-tokens 5000 exceeds the 4096 positions of tiny"),
        ("tiny", 2, 63, "--microbatch-tokens 63 must be at least 64; raise it, or give --job with samples"),
    ],
)
def test_a_mistake_is_told_before_any_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, num_stages: int, capacity_tokens: int, message: str
) -> None:
    monkeypatch.setattr(profile_module, "launch", lambda *_, **__: pytest.fail("started"))
    path = tmp_path / "profile.json"
    with pytest.raises(JobError, match=message):
        profile_model(model, output=path, num_stages=num_stages, capacity_tokens=capacity_tokens)
    with pytest.raises(JobError, match="is a folder"):
        profile_model("tiny", output=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        profile_model("tiny", output=tmp_path / "file" / "profile.json")
    # Where nobody can make a file, not even root.
    with pytest.raises(OSError, match=r"/proc/profile\.json"):
        profile_model("tiny", output=Path("/proc/profile.json"))
    assert not path.exists()


def test_json_knows_no_infinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"

    def measured(model: str, *, output: Path, **_: object) -> CostProfile:
        made = uniform_profile(num_stages=2, forward_ms=1.0, backward_ms=2.0)
        made.save(output)
        return made

    monkeypatch.setattr(profile_module, "profile_model", measured)
    profile_command("tiny", path, json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == json.loads(path.read_text())


@pytest.mark.parametrize("factors", [(1.07, 1.015), (None, None)])
def test_what_a_gpu_takes_longer_without_a_rest_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    factors: tuple[float | None, float | None],
) -> None:
    forward, backward = factors
    made = replace(
        uniform_profile(num_stages=2, forward_ms=1.0, backward_ms=2.0),
        steady_forward_factor=forward,
        steady_backward_factor=backward,
    )
    monkeypatch.setattr(profile_module, "profile_model", lambda model, **_: made)
    profile_command("tiny", tmp_path / "profile.json")
    told = "a GPU at work for seconds is 7.0 % slower than in the rounds in forwards, 1.5 % in backwards"
    assert (told in capsys.readouterr().out) == (forward is not None)
