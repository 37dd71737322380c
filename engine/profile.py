"""A CostProfile of a model on this machine, from measurements of the engine itself."""

import datetime
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..planner.errors import JobError
from ..planner.inputs.base_model import BaseModel, find_base_model
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.override import Override
from ..planner.jobs import Job
from ..traces.costs import CostProfile, CostTerms, EndCosts, LinkCosts, MemoryCosts, PassCosts
from ..traces.counted import counted
from ..traces.files import check_writable
from ..traces.fit import CostPoints, calibrated, fit, fit_terms
from ..traces.profiles import own_name
from .base_folder import check_has_weights
from .devices import check_device
from .launch import launch
from .measure import Float, StagePoints, measure_link, measure_stages
from .message import Wire
from .model import Layout, read_config
from .transport import Transport
from .weight_source import WeightSource

_LINK_SIZES = (1, 64, 256, 1024)
_LEAST_TOKENS = 64
"""Of a microbatch to measure without a job file: the samples made up for it have 16 tokens and more."""


def profile_model(
    model: str,
    *,
    output: Path,
    job_file: Path | None = None,
    random_weights: bool = False,
    load_in_4bit: bool = False,
    num_stages: int = 2,
    capacity_tokens: int = 1024,
    device: str = "cpu",
    depth: int = 2,
) -> CostProfile:
    """Measure on this machine, with as many processes as a run would have, and write the profile to `output`.

    With a job file, its adapters are measured (on a CPU its lengths too), else adapters of r = 16. With
    `random_weights` the model needs no weights of its own. On `cuda`, stages of `depth` layers and of twice as many
    stand for all, and the raw points are written beside the profile. Takes about a minute. Raises JobError for a model
    that does not fit, InputError for a device that is not here, EngineError when a process ends.
    """
    check_device(device)
    base = find_base_model(model, relative_to=Path.cwd(), random_weights=random_weights, load_in_4bit=load_in_4bit)
    check_has_weights(base)
    _check_request(base, output=output, job_file=job_file, num_stages=num_stages, capacity_tokens=capacity_tokens)
    with tempfile.TemporaryDirectory(prefix="loraplex-profile-") as folder:
        arguments = [model, str(output), "--work", folder, "--stages", str(num_stages)]
        arguments += ["--microbatch-tokens", str(capacity_tokens)]
        arguments += [] if job_file is None else ["--job", str(job_file)]
        arguments += ["--random-weights"] if random_weights else []
        arguments += ["--load-in-4bit"] if load_in_4bit else []
        arguments += ["--device", device, "--depth", str(depth), "--command", shlex.join(["loraplex", *sys.argv[1:]])]
        launch("loraplex.engine.profile_main", arguments, work_dir=Path(folder), num_workers=num_stages)
    return CostProfile.load(output)


def _check_request(
    base: BaseModel, *, output: Path, job_file: Path | None, num_stages: int, capacity_tokens: int
) -> None:
    # Here, so that a mistake is told once and not by every process.
    if num_stages > base.num_layers:
        raise JobError(
            f"{num_stages} stages exceed the {counted(base.num_layers, 'layer')} of {base.name}; lower --stages"
        )
    if output.is_dir():
        raise JobError(f"{output}: is a folder; name a file to write with -o")
    # Now, and not when all has been measured.
    check_writable(output)
    if job_file is None:
        if capacity_tokens < _LEAST_TOKENS:
            raise JobError(
                f"--microbatch-tokens {capacity_tokens} must be at least {_LEAST_TOKENS}; raise it, or give --job with "
                "samples that are shorter"
            )
        if capacity_tokens > base.max_tokens:
            raise JobError(
                f"--microbatch-tokens {capacity_tokens} exceeds the {base.max_tokens} positions of {base.name}; lower "
                "it, or give --job with samples that are shorter"
            )
        return
    loaded = load_jobs(job_file, override=Override(random_weights=base.random_weights))
    longest = max(sample.num_tokens for job in loaded.jobs for batch in job.global_batches for sample in batch)
    if longest > capacity_tokens:
        raise JobError(f"{job_file}: the longest sample has {longest} tokens; raise --microbatch-tokens to hold it")
    for job in loaded.jobs:
        base.targets(job.lora.target_modules)


def measure_profile(
    base: BaseModel,
    folder: Path,
    jobs: Sequence[Job],
    transport: Transport,
    *,
    num_stages: int,
    capacity_tokens: int,
    seconds: float = 12.0,
) -> CostProfile:
    """One worker's part, in about `seconds`; what worker 0 returns counts.

    Three kinds of stage are measured with the layers a stage of a run would have: one in the middle, the first with the
    embedding, the last with the head. The middle gives the layers' cost, the others' surplus the ends'.
    """
    num_layers = -(-base.num_layers // num_stages)
    layouts = [Layout(stage=place, num_stages=3, first_layer=0, end_layer=num_layers) for place in range(3)]
    first, middle, last = measure_stages(
        folder,
        jobs,
        layouts,
        transport,
        num_workers=num_stages,
        capacity_tokens=capacity_tokens,
        weights=WeightSource.of(base),
        seconds=seconds,
    )
    config = read_config(folder)
    wire = Wire(hidden_size=config.hidden_size, dtype=getattr(config, "dtype", None) or torch.float32)
    link_ms = measure_link(transport, wire, num_tokens=_LINK_SIZES) if num_stages > 1 else []
    forward_points = _cost_points(middle, middle.forward_ms / num_layers)
    backward_points = _cost_points(middle, middle.backward_ms / num_layers)
    forward, backward = fit(forward_points, fitter=calibrated), fit(backward_points, fitter=calibrated)
    return CostProfile(
        name=own_name(f"{Path(base.name).name}-cpu"),
        origin="measured",
        source=_source(base, num_stages=num_stages, num_layers=num_layers),
        num_layers=base.num_layers,
        forward=_pass(forward.terms),
        backward=_pass(backward.terms),
        ends=_ends(first, middle, last),
        step_ms_per_layer=middle.step_ms / num_layers,
        link=_link(link_ms, wire),
        memory=_memory(first, middle, last, num_layers=num_layers, wire=wire),
        fit_error_median=float(np.median([forward.error_median, backward.error_median])),
        fit_error_worst=max(forward.error_worst, backward.error_worst),
    )


def _pass(terms: CostTerms) -> PassCosts:
    # What grows with the squares is attention; on a CPU the rest was measured as one.
    return PassCosts(
        linears={"eager": replace(terms, per_square_ms=0.0)}, attention=CostTerms(per_square_ms=terms.per_square_ms)
    )


def _ends(first: StagePoints, middle: StagePoints, last: StagePoints) -> EndCosts:
    return EndCosts(
        embedding_forward=_surplus(first.loads.tokens, first.forward_ms - middle.forward_ms),
        embedding_backward=_surplus(first.loads.tokens, first.backward_ms - middle.backward_ms),
        head_forward=_surplus(last.loads.targets, last.forward_ms - middle.forward_ms),
        head_backward=_surplus(last.loads.targets, last.backward_ms - middle.backward_ms),
    )


def _surplus(tokens: NDArray[np.int64], ms: Float) -> CostTerms:
    # Differences of measurements, some below zero (the first stage passes no gradient on), so errors count absolutely
    # here: least squares over a constant and the tokens, neither negative.
    columns = np.stack([np.ones(len(ms)), tokens], axis=1)
    best, best_error = np.zeros(2), float((ms**2).sum())
    for chosen in ([0], [1], [0, 1]):
        found = np.linalg.lstsq(columns[:, chosen], ms, rcond=None)[0]
        error = float(((columns[:, chosen] @ found - ms) ** 2).sum())
        if (found >= 0).all() and error < best_error:
            best, best_error = np.zeros(2), error
            best[chosen] = found
    return CostTerms(fixed_ms=float(best[0]), per_token_ms=float(best[1]))


def _cost_points(points: StagePoints, ms: Float) -> CostPoints:
    loads = points.loads
    return CostPoints.of(
        tokens=loads.tokens, squares=loads.squares, adapters=loads.adapters, dropped=loads.dropped, ms=ms
    )


def _link(ms: Sequence[float], wire: Wire) -> LinkCosts:
    per_token = float(wire.hidden_size * wire.dtype.itemsize)
    if not ms:
        return LinkCosts(bytes_per_token=per_token)
    terms = fit_terms(CostPoints.of(tokens=list(_LINK_SIZES), ms=ms, adapters=0.0))
    rate = per_token / terms.per_token_ms if terms.per_token_ms else float("inf")
    return LinkCosts(latency_ms=terms.fixed_ms, bytes_per_ms=rate, bytes_per_token=per_token)


def _memory(first: StagePoints, middle: StagePoints, last: StagePoints, *, num_layers: int, wire: Wire) -> MemoryCosts:
    # All of it counted: weights, and what one forward of each microbatch was seen to keep for its backward. What a pass
    # needs in passing and frees before it ends is not in it.
    tokens, targets = middle.loads.tokens, last.loads.targets
    per_token = _per_unit(tokens, middle.kept_bytes)
    return MemoryCosts(
        layer_weight_bytes=middle.weight_bytes / num_layers,
        embedding_weight_bytes=first.weight_bytes - middle.weight_bytes,
        head_weight_bytes=last.weight_bytes - middle.weight_bytes,
        # Weights, gradients and AdamW's two moments.
        adapter_bytes_per_layer=4 * middle.adapter_bytes / num_layers,
        adapter_gradient_bytes_per_layer=middle.adapter_bytes / num_layers,
        activation_bytes_per_token_layer=per_token / num_layers,
        boundary_bytes_per_token=wire.hidden_size * wire.dtype.itemsize,
        logit_bytes_per_target=max(0.0, _per_unit(targets, last.kept_bytes - middle.kept_bytes)),
    )


def _per_unit(counts: NDArray[np.int64], num_bytes: Float) -> float:
    # Least squares through the origin: an adapter without dropout keeps less than one with it, so it is a mean of both.
    return float((counts * num_bytes).sum() / (counts.astype(np.float64) ** 2).sum())


def _source(base: BaseModel, *, num_stages: int, num_layers: int) -> str:
    return (
        f"{platform.machine()} CPU with {counted(os.cpu_count() or 1, 'core')}, "
        f"{counted(num_stages, 'process')} side by side, {counted(torch.get_num_threads(), 'thread')} each, "
        f"stages of {counted(num_layers, 'layer')} of {base.name}, "
        f"torch {torch.__version__}, {datetime.date.today().isoformat()}, loraplex profile {base.name} --device cpu"
    )
