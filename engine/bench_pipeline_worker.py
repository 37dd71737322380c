"""One process of `loraplex bench pipeline`: a stage, for one plan after another.

The processes stay the same from plan to plan; each plan gets fresh adapters and is run once before it is measured.
"""

import gc
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..planner.build_program import build_program
from ..planner.inputs.base_model import find_base_model
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..traces.timeline import Timeline
from .base_folder import base_model_folder
from .bench_pipeline import Order, Sharing, plan_path, sharing_path, spans_path
from .clock import clock_offset_ns
from .connect import open_transport
from .devices import choose_device
from .ending import ends_process
from .execute import Executor
from .itinerary import itinerary
from .measure import run_round
from .packer import Packer
from .pool_tokens import PoolTokens
from .position import PositionFile, position_path
from .recorder import Recorder
from .stage import Stage, make_stage
from .transport import Transport
from .watchdog import start_watchdog
from .weight_source import WeightSource

_SHARING_MICROBATCHES = 6
_SHARING_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    # What one process has for all plans.
    folder: Path
    model_folder: Path
    weights: WeightSource
    device: torch.device
    transport: Transport
    position: PositionFile
    clock_offset_ns: int

    def stage(self, plan: Plan) -> Stage:
        """Of this process, with fresh adapters; the one before must be gone, or there is no room for two."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        index = self.transport.worker
        return make_stage(
            self.model_folder,
            plan.jobs,
            stage=index,
            num_stages=plan.num_stages,
            weights=self.weights,
            device=self.device,
        )

    def recorder(self) -> Recorder:
        return Recorder(stage=self.transport.worker, device=self.device, clock_offset_ns=self.clock_offset_ns)


def main() -> None:
    """Run every plan of the order in the folder that the command line names."""
    folder = Path(sys.argv[1])
    order = Order.load(folder)
    device = choose_device(order.device)
    transport = open_transport(num_stages=order.num_stages, device=device)
    position = PositionFile(position_path(folder, transport.worker))
    start_watchdog(lambda: f"stage {transport.worker} at {position.text}")
    model = find_base_model(order.model, relative_to=folder, random_weights=True)
    if transport.worker == 0:
        base_model_folder(model, output_dir=folder)
    transport.barrier()
    bench = _Bench(
        folder=folder,
        model_folder=base_model_folder(model, output_dir=folder),
        weights=WeightSource.of(model),
        device=device,
        transport=transport,
        position=position,
        clock_offset_ns=clock_offset_ns(transport, num_workers=order.num_stages),
    )
    # Unchecked: a rival's plan may break our rules, as the published planner's empty microbatches do.
    _measure_sharing(bench, load_plan(plan_path(folder, 0), check=False))
    for number, schedule in enumerate(order.schedules):
        _execute(bench, load_plan(plan_path(folder, number), check=False), schedule, number)
    transport.barrier()
    transport.close()


def _execute(bench: _Bench, plan: Plan, schedule: str, number: int) -> None:
    # Twice, and the second run counts: the first loads kernels and makes room for messages as no later one does.
    transport, stage = bench.transport, bench.stage(plan)
    legs = itinerary(build_program(plan, schedule=schedule), plan, stage=transport.worker)
    for word in ("warming up", "measuring"):
        stage.rewind()
        recorder = bench.recorder()
        executor = _executor(bench, stage, plan, recorder, said=f"plan {number}, {word}")
        recorder.mark()
        transport.barrier()
        executor.run(legs)
    Timeline.from_spans(
        recorder.spans(origin_ns=0), source="measured", origin=_machine(bench.device), num_stages=plan.num_stages
    ).save(spans_path(bench.folder, number, transport.worker))
    transport.barrier()


def _executor(bench: _Bench, stage: Stage, plan: Plan, recorder: Recorder, *, said: str) -> Executor:
    return Executor(
        stage,
        plan,
        Packer(plan.jobs, PoolTokens(stage.model.config.vocab_size), device=bench.device, buckets=stage.buckets),
        bench.transport,
        recorder=recorder,
        # On random weights one may run away; all of its work is to be timed all the same.
        on_nonfinite="skip",
        before_leg=lambda leg: bench.position.move(f"{said}, {leg.word}", leg.action.microbatch),
    )


def _measure_sharing(bench: _Bench, plan: Plan) -> None:
    # Each stage by itself while the others wait, then all at once.
    bench.position.move("measuring how stages share", -1)
    stage, work = bench.stage(plan), _first(plan, _SHARING_MICROBATCHES)
    _alone(stage, work)
    found = np.zeros((2, plan.num_stages))
    for worker in range(plan.num_stages):
        bench.transport.barrier()
        if worker == bench.transport.worker:
            found[0, worker] = min(_alone(stage, work) for _ in range(_SHARING_ROUNDS))
    bench.transport.barrier()
    # One more round than counts, so that nobody is measured beside a stage that has already stopped.
    rounds = [_alone(stage, work) for _ in range(_SHARING_ROUNDS + 1)]
    found[1, bench.transport.worker] = min(rounds[:_SHARING_ROUNDS])
    numbers = torch.from_numpy(found)
    bench.transport.reduce(numbers, workers=range(plan.num_stages))
    if bench.transport.worker == 0:
        alone, together = (tuple(row) for row in numbers.tolist())
        sharing = Sharing(alone_ms=alone, together_ms=together)
        sharing_path(bench.folder).write_text(json.dumps(asdict(sharing)), encoding="utf-8")
    bench.transport.barrier()


def _machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def _first(plan: Plan, count: int) -> Plan:
    return replace(plan, microbatches=tuple(held for held in plan.microbatches if held.samples)[:count])


def _alone(stage: Stage, plan: Plan) -> float:
    # Forward and backward of each microbatch over made-up messages; milliseconds of compute.
    return sum(ms for _, ms in run_round(stage, plan))


if __name__ == "__main__":
    with ends_process():
        main()
    # The process group's threads may outlive it.
    os._exit(0)
