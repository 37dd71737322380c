"""Validation: the loss of what was kept out, through all stages, without dropout and without changing anything."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from loraplex.engine.batch import Encoded
from loraplex.engine.output import note_validation, read_validation
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.validate import Validation
from loraplex.tests.engine.kept_out import KeptOut


class KeptNone:
    def validation(self, adapter: int) -> Sequence[Encoded]:
        return ()


def test_samples_are_packed_in_order_up_to_the_capacity(small_plan: Any, three_jobs: Any) -> None:
    validation = Validation.of(small_plan(three_jobs(), num_stages=2, microbatch_tokens=40), KeptOut())
    assert validation is not None
    held = [[(s.adapter, s.num_tokens) for s in batch.samples] for batch in validation.plan.microbatches]
    assert held == [[(0, 5), (0, 9), (0, 20)], [(0, 7), (0, 11)], [(0, 30), (0, 4)], [(2, 13), (2, 16)]]
    assert all(job.lora.lora_dropout == 0 for job in validation.plan.jobs)


def test_nothing_kept_out_is_nothing_to_do(small_plan: Any, three_jobs: Any) -> None:
    assert Validation.of(small_plan(three_jobs(), num_stages=2), KeptNone()) is None


@pytest.mark.parametrize("num_stages", [1, 3])
def test_losses_before_training_are_those_of_the_base_model(
    model_folder: Path, make_stages: Any, small_plan: Any, three_jobs: Any, num_stages: int
) -> None:
    import threading

    plan = small_plan(three_jobs(dropout=0.5), num_stages=num_stages)
    validation = Validation.of(plan, KeptOut())
    assert validation is not None
    stages = make_stages(plan)
    before = [adapter.tensors() for stage in stages for adapter in stage.adapters]
    board = Switchboard(num_stages, timeout_s=20)
    found: list[dict[str, float]] = [{} for _ in stages]

    def work(worker: int) -> None:
        found[worker] = validation.losses(stages[worker], RendezvousTransport(board, worker))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(num_stages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    expected = {}
    for adapter in (0, 2):
        logits, labels = [], []
        for ids, own in KeptOut().validation(adapter):
            logits.append(base(torch.from_numpy(ids)[None], use_cache=False).logits[0, :-1])
            labels.append(torch.from_numpy(own)[1:])
        expected[f"job{adapter}"] = cross_entropy(torch.cat(logits), torch.cat(labels)).item()
    assert found[:-1] == [{}] * (num_stages - 1)
    assert found[-1] == pytest.approx(expected, abs=1e-5)
    after = [adapter.tensors() for stage in stages for adapter in stage.adapters]
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_file_keeps_what_was_measured_before(tmp_path: Path) -> None:
    assert read_validation(tmp_path) == {}
    note_validation(tmp_path, "before", {"one": 3.0, "two": 4.0})
    note_validation(tmp_path, "after", {"one": 1.5, "two": 4.25})
    assert read_validation(tmp_path) == {"one": {"before": 3.0, "after": 1.5}, "two": {"before": 4.0, "after": 4.25}}


def test_the_loss_of_a_broken_adapter_leaves_the_file_plain_json(tmp_path: Path) -> None:
    note_validation(tmp_path, "before", {"broken": 3.0})
    note_validation(tmp_path, "after", {"broken": math.nan})

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    text = (tmp_path / "validation.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == {"broken": {"before": 3.0, "after": None}}
    assert math.isnan(read_validation(tmp_path)["broken"]["after"])
