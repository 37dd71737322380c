"""One adapter's share of a stage: its start, its step, its norm, its state."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loraplex.engine.adapters import StageAdapter
from loraplex.engine.stage import make_stage
from loraplex.planner.errors import JobError
from loraplex.planner.jobs import Job, LoraSettings, OptimizerSettings, job_from_lengths


def job(**optimizer: Any) -> Job:
    """A job of four steps."""
    return job_from_lengths(
        adapter=0,
        name="one",
        lengths=[1] * 4,
        global_batch_size=1,
        optimizer=OptimizerSettings(lr_scheduler="constant", **optimizer),
    )


def adapter_with(sizes: dict[str, tuple[int, int]], owner: Job) -> StageAdapter:
    generator = torch.Generator().manual_seed(0)
    return StageAdapter(
        owner, {name: nn.Parameter(torch.randn(size, generator=generator)) for name, size in sizes.items()}
    )


def give_gradients(adapter: StageAdapter, *, scale: float, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for weight in adapter.parameters.values():
        weight.grad = scale * torch.randn(weight.shape, generator=generator)
    return [weight.grad.clone() for weight in adapter.parameters.values() if weight.grad is not None]


ZERO = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 1e9])
def test_steps_are_those_of_torch_with_its_own_clipping(max_grad_norm: float | None) -> None:
    owner = job(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=max_grad_norm, betas=(0.8, 0.95), eps=1e-6)
    adapter = adapter_with({"a": (3, 5), "b": (4, 2)}, owner)
    stock = [nn.Parameter(weight.detach().clone()) for weight in adapter.parameters.values()]
    optimizer = torch.optim.AdamW(stock, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for step in range(4):
        before = [weight.detach().clone() for weight in stock]
        for weight, gradient in zip(stock, give_gradients(adapter, scale=1.0, seed=step), strict=True):
            weight.grad = gradient
        norm = nn.utils.clip_grad_norm_(stock, max_grad_norm or float("inf"))
        optimizer.step()
        report = adapter.step(total_squares=adapter.close(step, after=ZERO), update_squares=ZERO)
        for mine, weight in zip(adapter.parameters.values(), stock, strict=True):
            torch.testing.assert_close(mine, weight, atol=1e-6, rtol=0)
        assert report.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
        moved = sum((weight.detach() - old).double().square().sum() for weight, old in zip(stock, before, strict=True))
        assert report.update_squares.item() == pytest.approx(float(moved), rel=1e-4)
        assert report.learning_rate == 1e-2
        assert adapter.version == step + 1
        assert all(weight.grad is None for weight in adapter.parameters.values())


def test_the_norm_has_the_same_bits_however_the_layers_are_cut() -> None:
    sizes = {f"layer{index}": (7, 11) for index in range(6)}
    whole = adapter_with(sizes, job())
    give_gradients(whole, scale=1.0, seed=3)
    gradients = {name: weight.grad for name, weight in whole.parameters.items()}
    expected = whole.close(0, after=ZERO)
    for cut in (1, 2, 5):
        names = list(sizes)
        total = ZERO
        for part in (names[cut:], names[:cut]):
            stage = StageAdapter(job(), {name: nn.Parameter(torch.zeros(sizes[name])) for name in part})
            for name in part:
                stage.parameters[name].grad = gradients[name]
            total = stage.close(0, after=total)
        assert total.item() == expected.item()


def test_a_closed_batch_keeps_apart_from_the_next() -> None:
    adapter = adapter_with({"a": (2, 2)}, job())
    first = give_gradients(adapter, scale=1.0, seed=0)
    adapter.close(0, after=ZERO)
    assert adapter.parameters["a"].grad is None
    give_gradients(adapter, scale=5.0, seed=1)
    adapter.close(1, after=ZERO)
    assert torch.equal(adapter.closed[0]["a"], first[0])
    adapter.step(total_squares=torch.tensor(1e-9, dtype=torch.float64), update_squares=ZERO)
    assert list(adapter.closed) == [1]


@pytest.mark.parametrize("forever", [True, False])
def test_a_step_that_is_no_number_leaves_weights_and_optimizer_as_they_were(forever: bool) -> None:
    broken, apart = (adapter_with({"a": (3, 5), "b": (4, 2)}, job(learning_rate=1e-2)) for _ in range(2))
    for adapter in (broken, apart):
        give_gradients(adapter, scale=1.0, seed=0)
        adapter.step(total_squares=adapter.close(0, after=ZERO), update_squares=ZERO)
    good = broken.tensors()
    give_gradients(broken, scale=float("inf"), seed=1)
    report = broken.step(total_squares=broken.close(1, after=ZERO), update_squares=ZERO)
    assert (report.taken.item(), report.update_squares.item()) == (False, 0.0)
    assert {key for key, value in broken.tensors().items() if not torch.equal(value, good[key])} == {"alive"}
    # The next step is a good one: it is taken unless the adapter is halted for good.
    if not forever:
        broken.alive.fill_(True)
    for number, adapter in ((2, broken), (1, apart)):
        give_gradients(adapter, scale=1.0, seed=2)
        total = adapter.close(number, after=ZERO)
        assert adapter.step(total_squares=total, update_squares=ZERO).taken.item() is (adapter is apart or not forever)
    assert torch.equal(broken.parameters["a"], apart.parameters["a"]) is not forever


def stepped(adapter: StageAdapter, step: int, *, scale: float = 1.0, forever: bool = True) -> bool:
    give_gradients(adapter, scale=scale, seed=step)
    total = adapter.close(step, after=ZERO)
    return bool(adapter.step(total_squares=total, update_squares=ZERO, forever=forever).taken)


def weights(adapter: StageAdapter) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in adapter.parameters.values()]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("improved", [False, True])
def test_the_best_weights_are_those_of_a_look_that_found_them_better(improved: bool, resumed: bool) -> None:
    # A first look that found no number keeps nothing: the weights stay where the adapter's own steps left them.
    sizes = {"a": (3, 5), "b": (4, 2)}
    adapter = adapter_with(sizes, job(learning_rate=1e-3))
    stepped(adapter, 0)
    looked_at = weights(adapter)
    adapter.keep_best(torch.tensor(improved))
    stepped(adapter, 1)
    last = weights(adapter)
    adapter.keep_best(torch.tensor(False))
    if resumed:
        saved, adapter = adapter.tensors(), adapter_with(sizes, job(learning_rate=1e-3))
        adapter.load(saved, version=2)
    adapter.load_best()
    assert all(map(torch.equal, weights(adapter), looked_at if improved else last))
    assert not torch.equal(looked_at[0], last[0])


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(("rate", "goes_back"), [(0.09, False), (0.1, True), (1e5, True), (1e30, True)])
def test_a_step_at_a_risky_rate_is_undone_where_the_next_gradient_is_no_number(
    rate: float, goes_back: bool, resumed: bool
) -> None:
    sizes = {"a": (3, 5), "b": (4, 2)}
    adapter = adapter_with(sizes, job(learning_rate=rate))
    stepped(adapter, 0)
    before = weights(adapter)
    assert stepped(adapter, 1)
    behind = weights(adapter)
    if resumed:
        saved, adapter = adapter.tensors(), adapter_with(sizes, job(learning_rate=rate))
        adapter.load(saved, version=2)
    assert not stepped(adapter, 2, scale=float("nan"))
    ends = weights(adapter)
    assert all(map(torch.equal, ends, before if goes_back else behind))
    # It stays there: the steps behind it are none of its own.
    assert not stepped(adapter, 3, scale=float("nan"))
    assert all(map(torch.equal, weights(adapter), ends))


def test_a_step_at_a_risky_rate_stays_where_the_next_gradient_is_a_number() -> None:
    adapter = adapter_with({"a": (3, 5)}, job(learning_rate=1.0))
    start = weights(adapter)
    assert [stepped(adapter, step) for step in range(2)] == [True, True]
    assert not any(map(torch.equal, weights(adapter), start))


@pytest.mark.parametrize("resumed", [False, True])
def test_where_steps_are_skipped_a_risky_one_is_undone_once_and_the_next_is_taken(resumed: bool) -> None:
    sizes = {"a": (3, 5), "b": (4, 2)}
    adapter = adapter_with(sizes, job(learning_rate=1.0))
    stepped(adapter, 0, forever=False)
    before = weights(adapter)
    assert stepped(adapter, 1, forever=False)
    for step in (2, 3):
        # The second such gradient is not that of a step: it must not bring back the weights that were left.
        assert not stepped(adapter, step, scale=float("nan"), forever=False)
        assert all(map(torch.equal, weights(adapter), before))
        if resumed:
            saved, adapter = adapter.tensors(), adapter_with(sizes, job(learning_rate=1.0))
            adapter.load(saved, version=step + 1)
    assert stepped(adapter, 4, forever=False)
    assert not any(map(torch.equal, weights(adapter), before))


@pytest.mark.parametrize("forever", [True, False])
def test_a_rate_that_float32_cannot_add_is_no_step(forever: bool) -> None:
    adapter = adapter_with({"a": (3, 5)}, job(learning_rate=1e39))
    start = weights(adapter)
    assert not stepped(adapter, 0, forever=forever)
    assert all(map(torch.equal, weights(adapter), start))
    assert adapter.alive.item() is not forever


def test_a_skipped_step_does_not_halt() -> None:
    adapter = adapter_with({"a": (2, 2)}, job())
    give_gradients(adapter, scale=float("nan"), seed=0)
    adapter.step(total_squares=adapter.close(0, after=ZERO), update_squares=ZERO, forever=False)
    assert adapter.alive.item() is True
    assert adapter.version == 1


def test_a_halted_adapter_takes_one_batch_more_and_then_none_also_when_resumed() -> None:
    shapes = {"a": (2, 2)}
    adapter = adapter_with(shapes, job())
    found, resumed = [], []
    for step in range(5):
        again = adapter_with(shapes, job())
        again.load(adapter.tensors(), version=step)
        found.append(adapter.takes_samples())
        resumed.append(again.takes_samples())
        give_gradients(adapter, scale=float("nan") if step == 1 else 1.0, seed=step)
        adapter.step(total_squares=adapter.close(step, after=ZERO), update_squares=ZERO)
    # Batch 2 may be under way before it is known what became of step 1.
    assert found == resumed == [True, True, True, False, False]


def test_replicas_sum_all_matrices_in_one_message() -> None:
    adapter = adapter_with({"a": (2, 3), "b": (4, 2)}, job())
    (first, _) = give_gradients(adapter, scale=1.0, seed=0)
    adapter.parameters["b"].grad = None
    sent = []

    def reduce(flat: torch.Tensor) -> None:
        sent.append(flat.shape)
        flat += 1.0

    total = adapter.close(0, after=ZERO, reduce=reduce)
    assert sent == [(14,)]
    assert torch.equal(adapter.closed[0]["a"], first + 1.0)
    assert torch.equal(adapter.closed[0]["b"], torch.ones(4, 2))
    assert total.item() == pytest.approx(8.0 + (first + 1.0).square().sum().item(), rel=1e-6)


class Packed:
    """A store like a bank's: sums that live on, and a copy of the weights that someone must refresh."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.copies: dict[str, torch.Tensor] = {}

    def gathered(self) -> dict[str, torch.Tensor]:
        return self.sums

    def take(self, into: Mapping[str, torch.Tensor]) -> None:
        for name, total in self.sums.items():
            into[name].copy_(total)
            total.zero_()

    def put(self, gradients: Mapping[str, torch.Tensor]) -> None:
        for name, gradient in gradients.items():
            self.sums[name].copy_(gradient)

    def refresh(self) -> None:
        self.copies = {name: parameter.detach().bfloat16() for name, parameter in self.parameters.items()}


def test_gradients_may_gather_in_sums_that_live_on() -> None:
    plain = adapter_with({"a": (3, 5), "b": (4, 2)}, job(learning_rate=1e-2))
    parameters = {name: nn.Parameter(weight.detach().clone()) for name, weight in plain.parameters.items()}
    store = Packed(parameters)
    packed = StageAdapter(job(learning_rate=1e-2), parameters, gradients=store)
    for step in range(2):
        for name, gradient in zip(parameters, give_gradients(plain, scale=1.0, seed=step), strict=True):
            store.sums[name] += gradient
        totals = [adapter.close(step, after=ZERO) for adapter in (plain, packed)]
        for adapter, total in zip((plain, packed), totals, strict=True):
            adapter.step(total_squares=total, update_squares=ZERO)
        assert all(torch.equal(parameters[name], weight) for name, weight in plain.parameters.items())
        assert all(torch.equal(store.copies[name], weight.bfloat16()) for name, weight in parameters.items())
    store.sums["a"] += 3.0
    other = {name: nn.Parameter(torch.zeros_like(weight)) for name, weight in parameters.items()}
    again = StageAdapter(job(), other, gradients=Packed(other))
    again.load(packed.tensors(), version=2)
    assert torch.equal(again.gradients.gathered()["a"], torch.full((3, 5), 3.0))
    assert again.closed == {}


def test_state_goes_out_and_comes_back_whole() -> None:
    owner = job(learning_rate=1e-2)
    adapter = adapter_with({"a": (3, 5), "b": (4, 2)}, owner)
    for step in range(2):
        give_gradients(adapter, scale=1.0, seed=step)
        adapter.step(total_squares=adapter.close(step, after=ZERO), update_squares=ZERO)
    give_gradients(adapter, scale=1.0, seed=2)
    adapter.close(2, after=ZERO)
    give_gradients(adapter, scale=1.0, seed=3)
    saved = adapter.tensors()
    kinds = {key.rpartition("/")[0] for key in saved}
    assert kinds == {
        "", "weight", "grad", "closed/2", "optimizer/step", "optimizer/exp_avg", "optimizer/exp_avg_sq",
    }  # fmt: skip
    other = adapter_with({"a": (3, 5), "b": (4, 2)}, owner)
    other.load({**saved, "weight/of another stage": torch.zeros(1)}, version=2)
    for one in (adapter, other):
        one.step(total_squares=torch.tensor(4.0, dtype=torch.float64), update_squares=ZERO)
    assert all(torch.equal(value, other.tensors()[key]) for key, value in adapter.tensors().items())
    # What was saved is a copy: the steps since did not change it.
    assert not torch.equal(saved["weight/a"], adapter.parameters["a"])


@pytest.mark.gpu
def test_what_is_saved_of_a_gpus_adapter_takes_none_of_its_memory() -> None:
    parameters = {"a": nn.Parameter(torch.randn(1024, 1024, device="cuda"))}
    adapter = StageAdapter(job(learning_rate=1e-2), parameters)
    parameters["a"].grad = torch.ones_like(parameters["a"])
    zero = ZERO.cuda()
    adapter.step(total_squares=adapter.close(0, after=zero), update_squares=zero)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    saved = adapter.tensors()
    assert {tensor.device.type for tensor in saved.values()} == {"cpu"}
    assert torch.cuda.max_memory_allocated() == before
    other = StageAdapter(job(learning_rate=1e-2), {"a": nn.Parameter(torch.zeros(1024, 1024, device="cuda"))})
    other.load(saved, version=1)
    assert all(torch.equal(value, other.tensors()[key]) for key, value in saved.items())


def test_the_start_depends_on_seed_and_name_alone(model_folder: Path, three_jobs: Any, alone: Any) -> None:
    jobs = three_jobs()
    together: dict[str, torch.Tensor] = {}
    for stage in range(3):
        together |= make_stage(model_folder, jobs, stage=stage, num_stages=3).adapters[1].parameters
    single = make_stage(model_folder, [alone(jobs[1])], stage=0, num_stages=1).adapters[0].parameters
    assert list(together) == list(single)
    assert all(torch.equal(together[name], weight) for name, weight in single.items())
    other = replace(alone(jobs[1]), seed=5)
    reseeded = make_stage(model_folder, [other], stage=0, num_stages=1).adapters[0].parameters
    assert [name for name in single if torch.equal(single[name], reseeded[name])] == [
        name for name in single if "lora_B" in name
    ]


def test_the_start_is_pefts(model_folder: Path) -> None:
    owner = replace(job(), lora=LoraSettings(r=8, target_modules=("down_proj",)))
    parameters = make_stage(model_folder, [owner], stage=0, num_stages=1).adapters[0].parameters
    first = "model.layers.0.mlp.down_proj"
    # kaiming_uniform with a = sqrt(5) over 64 input features is uniform within 1 / 8.
    a = parameters[f"{first}.lora_A.weight"]
    assert a.shape == (8, 64)
    assert 0.12 < a.abs().max().item() <= 0.125
    assert abs(a.mean().item()) < 0.01
    assert parameters[f"{first}.lora_B.weight"].shape == (32, 8)
    assert parameters[f"{first}.lora_B.weight"].count_nonzero() == 0
    assert len(parameters) == 2 * 4


def test_targets_that_match_nothing_are_named(model_folder: Path) -> None:
    wrong = replace(job(), lora=LoraSettings(target_modules=("q_proj", "c_attn")))
    with pytest.raises(
        JobError,
        match=r"adapter 'one': target_modules entry 'c_attn' matches no linear of a decoder layer; choose from",
    ):
        make_stage(model_folder, [wrong], stage=0, num_stages=1)
