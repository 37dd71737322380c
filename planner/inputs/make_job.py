"""From what a job file says of an adapter, with its texts in order, to a Job; and the settings of the whole."""

from pathlib import Path

from ..jobs import Job, LoraSettings, OptimizerSettings, Sample
from .base_model import BaseModel
from .jobfile import AdapterEntry
from .loaded_jobs import JobSettings
from .read_jobfile import ReadJobFile
from .tokens import TokenTable
from .training_order import TrainingOrder


def make_job(
    number: int,
    *,
    adapter: AdapterEntry,
    targets: tuple[str, ...],
    table: TokenTable,
    order: TrainingOrder,
    seed: int,
) -> Job:
    """The Job of adapter `number`: its global batches, all settings filled in."""
    return Job(
        name=adapter.name,
        global_batches=_global_batches(number, table, order),
        lora=LoraSettings(
            r=adapter.r,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=targets,
            use_rslora=adapter.use_rslora,
        ),
        optimizer=OptimizerSettings(
            learning_rate=adapter.learning_rate,
            lr_scheduler=adapter.lr_scheduler,
            warmup_ratio=adapter.warmup_ratio,
            weight_decay=adapter.weight_decay,
            max_grad_norm=adapter.max_grad_norm,
            betas=(adapter.adam_beta1, adapter.adam_beta2),
            eps=adapter.adam_epsilon,
        ),
        seed=seed,
        weight=adapter.weight,
        deadline_ms=adapter.deadline_ms,
    )


def _global_batches(adapter: int, table: TokenTable, order: TrainingOrder) -> tuple[tuple[Sample, ...], ...]:
    num_tokens = table.num_tokens()[order.rows].tolist()
    num_targets = table.num_target_tokens()[order.rows].tolist()
    batches = []
    first = 0
    for global_batch, size in enumerate(order.batch_sizes):
        batches.append(
            tuple(
                Sample(
                    adapter=adapter,
                    global_batch=global_batch,
                    index=index,
                    num_tokens=num_tokens[index],
                    num_target_tokens=num_targets[index],
                )
                for index in range(first, first + size)
            )
        )
        first += size
    return tuple(batches)


def make_settings(read: ReadJobFile, *, model: BaseModel) -> JobSettings:
    """What a job file says of all adapters together; its output folder is relative to it."""
    fields = read.fields
    return JobSettings(
        job_file=read.text.path,
        base_model=model,
        sequence_len=fields.sequence_len,
        num_stages=fields.pipeline.stages,
        num_replicas=fields.pipeline.replicas,
        schedule=fields.pipeline.schedule,
        microbatch_tokens=fields.microbatch_tokens or fields.sequence_len,
        recompute=fields.recompute,
        output_dir=read.text.path.parent / Path(fields.output_dir).expanduser(),
        seed=fields.seed,
        report_to=fields.report_to or (),
        on_nonfinite=fields.on_nonfinite,
    )
