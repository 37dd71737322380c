"""Memory from shapes alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from loraplex.planner.inputs.base_model import find_base_model
from loraplex.planner.jobs import EvaluationSettings, Job, LoraSettings, job_from_lengths
from loraplex.planner.memory_formula import memory_for_jobs, memory_of_shapes, with_best_copies, with_graphs
from loraplex.planner.model_shapes import ModelShapes
from loraplex.traces.costs import MemoryCosts
from loraplex.traces.graph_tokens import GRAPH_TOKENS
from loraplex.traces.memory_costs import RECOMPUTE_MODES

SHAPES = ModelShapes.of(find_base_model("llama-3.1-8b", relative_to=Path()))


def job(*, r: int = 16, targets: tuple[str, ...] = ("all-linear",)) -> Job:
    lora = LoraSettings(r=r, target_modules=targets)
    return job_from_lengths(adapter=0, name="a", lengths=[100], global_batch_size=1, lora=lora)


def test_a_llama_layer_by_hand() -> None:
    memory = memory_of_shapes(SHAPES, [job()], num_stages=2)
    # In bf16: two residual sums, q k v, attention's output, gate and up, S of seven linears; in float32 32 sums.
    selective = 2 * (2 * 4096 + 4096 + 2 * 1024 + 4096 + 2 * 14336 + 7 * 16) + 4 * 32
    none = selective + 2 * (2 * 4096 + 14336)
    assert [memory.kept_bytes_per_token_layer(mode) for mode in RECOMPUTE_MODES] == [none, selective, 2 * 4096]
    assert memory.head_weight_bytes == 2 * (128256 * 4096 + 4096)
    assert memory.adapter_bytes_per_layer == 22 * 41_943_040 / 32


def test_adapters_count_by_their_own_parameters() -> None:
    jobs = [job(), job(r=64, targets=("q_proj",))]
    memory = memory_of_shapes(SHAPES, jobs, num_stages=1)
    parameters = (41_943_040 / 32 + 64 * 8192) / 2
    assert memory.adapter_parameters_per_layer == parameters
    # S has as many columns as the largest r.
    more = (
        memory.selective_bytes_per_token_layer
        - memory_of_shapes(SHAPES, [job()], num_stages=1).selective_bytes_per_token_layer
    )
    assert more == 2 * 7 * (64 - 16)


def test_a_tied_head_takes_memory_only_where_the_embedding_does_not_lie() -> None:
    tied = replace(SHAPES, tied_head=True)
    weights = [memory_of_shapes(tied, [job()], num_stages=stages).head_weight_bytes for stages in (1, 2)]
    assert weights == [2 * 4096, 2 * (128256 * 4096 + 4096)]


def test_a_measured_profile_is_scaled_to_the_jobs_adapters() -> None:
    measured = MemoryCosts(
        adapter_bytes_per_layer=2000.0, adapter_gradient_bytes_per_layer=400.0, adapter_parameters_per_layer=100.0
    )
    found = memory_for_jobs(measured, SHAPES, [job()])
    parameters = 41_943_040 / 32
    assert found.adapter_parameters_per_layer == parameters
    assert found.adapter_bytes_per_layer == pytest.approx(20 * parameters)
    assert found.adapter_gradient_bytes_per_layer == pytest.approx(4 * parameters)
    # A profile that does not say what it was measured with is taken as it is.
    unknown = replace(measured, adapter_parameters_per_layer=0.0)
    assert memory_for_jobs(unknown, SHAPES, [job()]) == unknown


def test_microbatches_are_replayed_in_half_precision() -> None:
    memory = memory_of_shapes(SHAPES, [job()], num_stages=1)
    assert with_graphs(memory, SHAPES) == replace(memory, graph_tokens=GRAPH_TOKENS)
    assert with_graphs(replace(memory, graph_tokens=7), replace(SHAPES, dtype_bytes=4)) == memory


def test_best_weights_are_kept_beside_the_present_ones_where_they_are_asked_for() -> None:
    jobs = [job(), job(r=64, targets=("q_proj",)), job(r=32)]
    looks, last = EvaluationSettings(eval_steps=10, load_best_model_at_end=True), EvaluationSettings(eval_steps=10)
    memory = memory_of_shapes(SHAPES, jobs, num_stages=1)
    found = with_best_copies(memory, SHAPES, jobs, [last, looks, looks])
    # Of three adapters in one layer, float32 copies of the second and the third.
    more = 4 * (64 * 8192 + 2 * 41_943_040 / 32)
    assert 3 * (found.adapter_bytes_per_layer - memory.adapter_bytes_per_layer) == pytest.approx(more)
    assert replace(found, adapter_bytes_per_layer=memory.adapter_bytes_per_layer) == memory
    assert with_best_copies(memory, SHAPES, jobs, [last] * 3) == memory
