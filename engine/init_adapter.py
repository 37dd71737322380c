"""Going on from an adapter that exists: checked against its job before anything starts, then put in place of noise."""

from collections.abc import Sequence
from pathlib import Path

from ..planner.errors import JobError
from ..planner.inputs.base_model import LINEARS, BaseModel
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.jobs import Job
from ..planner.model_shapes import ModelShapes
from .adapters import StageAdapter
from .peft_folder import PeftAdapter, read_peft_adapter


def check_init_adapters(loaded: LoadedJobs) -> None:
    """Raise JobError for an `init_adapter` that is no plain LoRA or not what its job says; reads no matrices."""
    for job, folder in zip(loaded.jobs, loaded.init_adapters, strict=True):
        if folder is not None:
            _check(job, read_peft_adapter(folder), loaded.settings.base_model)


def start_from(adapters: Sequence[StageAdapter], folders: Sequence[Path | None]) -> None:
    """Give the matrices of a stage's adapters the values saved in their folders, where they have one."""
    for adapter, folder in zip(adapters, folders, strict=True):
        if folder is None:
            continue
        saved = read_peft_adapter(folder)
        for name, parameter in adapter.parameters.items():
            linear, _, side = name.removesuffix(".weight").rpartition(".")
            a, b = saved.matrices(linear)
            parameter.data.copy_(a if side == "lora_A" else b)
        # What the kernels read is a copy, where they have one.
        adapter.gradients.refresh()


def _check(job: Job, saved: PeftAdapter, base: BaseModel) -> None:
    where = f"adapter '{job.name}', init_adapter {saved.folder}"
    sizes = ModelShapes.of(base).linears()
    wanted = {
        f"model.layers.{layer}.{linear}": sizes[linear.rpartition(".")[2]]
        for layer in range(base.num_layers)
        for linear in LINEARS[base.family]
        if linear.rpartition(".")[2] in job.lora.target_modules
    }
    odd = sorted(set(wanted) ^ set(saved.lora_ranks))
    if odd:
        held = sorted({name.rpartition(".")[2] for name in saved.lora_ranks})
        who = "the job" if odd[0] in wanted else "init_adapter"
        raise JobError(
            f"{where}: only {who} changes {odd[0]}, and {len(odd)} linears differ in all; write target_modules: "
            f"[{', '.join(held)}], or give an adapter of all layers of this base model"
        )
    for linear, size in wanted.items():
        r, scaling = saved.lora_ranks[linear], saved.scaling(linear)
        if r != job.lora.r:
            raise JobError(f"{where}: has r = {r} at {linear}, the job r = {job.lora.r}; write r: {r}, if all have it")
        if scaling != job.lora.scaling():
            raise JobError(
                f"{where}: is multiplied by {scaling:g} at {linear}, the job's by {job.lora.scaling():g}; write "
                f"lora_alpha: {saved.config.get('lora_alpha')} and use_rslora: "
                f"{str(bool(saved.config.get('use_rslora'))).lower()}"
            )
        if saved.shapes(linear) != size:
            raise JobError(
                f"{where}: is made for a weight of shape {saved.shapes(linear)} at {linear}, {base.name} has {size}; "
                "give the base model that it was trained on"
            )
