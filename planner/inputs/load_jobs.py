"""load_jobs: from a job file to Jobs, their tokens and masks, and the fingerprint that ties a plan to them."""

from dataclasses import replace
from pathlib import Path

from ...traces.counted import counted
from ..build_program import schedule_names
from ..errors import JobError
from ..jobs import EvaluationSettings
from .base_model import BaseModel, find_base_model, load_tokenizer
from .jobfile import AdapterEntry, DatasetEntry
from .loaded_jobs import DataCounts, LoadedJobs, data_fingerprint
from .make_job import make_job, make_settings
from .override import AS_WRITTEN, Override
from .read_jobfile import ReadJobFile, read_jobfile
from .read_table import DEMO, ReadTable, data_path, read_table
from .tokens import Progress, Tokenizer, TokenTable, template_complaint
from .training_order import TrainingOrder, training_order

MAX_SAMPLES = 10_000_000
"""Samples in all steps of an adapter; a mistyped number must not eat all memory (a sample takes about 200 bytes)."""


def load_jobs(
    path: Path, *, allow_lengths: bool = False, override: Override = AS_WRITTEN, progress: Progress | None = None
) -> LoadedJobs:
    """Read a job file and its texts, tokenise, shuffle and cut into global batches.

    With `allow_lengths`, data sets of the type `lengths` are taken too: their jobs can be planned, not trained, unless
    the base model's weights are random and so may be the tokens. `progress` hears (what is being read, share done).
    Raises JobError naming file, line or field.
    """
    read = override.applied(read_jobfile(path))
    if not allow_lengths and not read.fields.random_weights:
        _refuse_lengths(read)
    model = _base_model(read)
    _check_limits(read, model)
    targets = tuple(_targets(read, number, model) for number in range(len(read.adapters)))
    only_lengths = all(dataset.type == "lengths" for adapter in read.adapters for dataset in adapter.datasets)
    tables = _tables(read, model, None if only_lengths else _tokenizer(read, model), progress)
    orders = tuple(_order(read, number, table.table) for number, table in enumerate(tables))
    return LoadedJobs(
        jobs=tuple(
            make_job(
                number,
                adapter=adapter,
                targets=targets[number],
                table=tables[number].table,
                order=orders[number],
                seed=_seed(read, adapter),
            )
            for number, adapter in enumerate(read.adapters)
        ),
        settings=make_settings(read, model=model),
        fingerprint=data_fingerprint([table.table for table in tables], orders),
        counts=tuple(
            DataCounts(
                num_read=len(table.table) + table.num_skipped,
                num_truncated=table.num_truncated,
                num_skipped=table.num_skipped,
                num_validation=len(order.validation_rows),
            )
            for table, order in zip(tables, orders, strict=True)
        ),
        evaluation=tuple(
            EvaluationSettings(
                eval_steps=adapter.eval_steps,
                early_stopping_patience=adapter.early_stopping_patience,
                load_best_model_at_end=adapter.load_best_model_at_end,
            )
            for adapter in read.adapters
        ),
        tables=tuple(table.table for table in tables),
        orders=orders,
        init_adapters=tuple(_init_adapter(read, number) for number in range(len(read.adapters))),
    )


def _refuse_lengths(read: ReadJobFile) -> None:
    for number, adapter in enumerate(read.adapters):
        for position, dataset in enumerate(adapter.datasets):
            if dataset.type == "lengths":
                place = read.adapter_place(number, "datasets", position, "type")
                raise JobError(
                    f"{place}: lengths can be planned and simulated, but here texts are needed; give texts, or set "
                    "random_weights to train on random tokens"
                )


def _base_model(read: ReadJobFile) -> BaseModel:
    try:
        found = find_base_model(
            read.fields.base_model,
            relative_to=read.text.path.parent,
            random_weights=read.fields.random_weights,
            num_layers=read.fields.num_layers,
            load_in_4bit=read.fields.load_in_4bit,
        )
    except JobError as error:
        raise JobError(f"{read.place('base_model')}: {error}") from error
    return replace(found, double_quant=read.fields.bnb_4bit_use_double_quant)


def _check_limits(read: ReadJobFile, model: BaseModel) -> None:
    pipeline = read.fields.pipeline
    if pipeline.stages > model.num_layers:
        raise JobError(
            f"{read.place('pipeline', 'stages')}: {pipeline.stages} stages exceed the "
            f"{counted(model.num_layers, 'layer')} of {model.name}, and each stage needs one; lower it"
        )
    if pipeline.schedule not in schedule_names():
        raise JobError(
            f"{read.place('pipeline', 'schedule')}: {pipeline.schedule!r} is unknown; choose one of "
            f"{', '.join(schedule_names())}"
        )
    microbatch_tokens = read.fields.microbatch_tokens
    if microbatch_tokens is not None and microbatch_tokens < read.fields.sequence_len:
        raise JobError(
            f"{read.place('microbatch_tokens')}: {microbatch_tokens} cannot hold a sample of "
            f"sequence_len={read.fields.sequence_len}; raise the one or lower the other"
        )
    if read.fields.sequence_len > model.max_tokens:
        raise JobError(
            f"{read.place('sequence_len')}: {read.fields.sequence_len} exceeds the {model.max_tokens} positions of "
            f"{model.name}; lower it"
        )


def _targets(read: ReadJobFile, number: int, model: BaseModel) -> tuple[str, ...]:
    try:
        return model.targets(read.adapters[number].target_modules)
    except JobError as error:
        raise JobError(f"{read.adapter_place(number, 'target_modules')}: {error}") from error


def _init_adapter(read: ReadJobFile, number: int) -> Path | None:
    given = read.adapters[number].init_adapter
    if given is None:
        return None
    folder = data_path(given, folder=read.text.path.parent)
    if not folder.is_dir():
        place = read.adapter_place(number, "init_adapter")
        raise JobError(f"{place}: there is no folder {folder}; paths are relative to the job file, mend it")
    return folder


def _tokenizer(read: ReadJobFile, model: BaseModel) -> Tokenizer:
    try:
        tokenizer = load_tokenizer(model)
    except JobError as error:
        raise JobError(f"{read.place('base_model')}: {error}") from error
    if read.fields.chat_template is not None:
        path = data_path(read.fields.chat_template, folder=read.text.path.parent)
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise JobError(f"{read.place('chat_template')}: {path} cannot be read ({why}); mend it") from error
        complaint = template_complaint(tokenizer.chat_template)
        if complaint is not None:
            raise JobError(f"{read.place('chat_template')}: {path}:{complaint}; mend it")
    return tokenizer


def _tables(
    read: ReadJobFile, model: BaseModel, tokenizer: Tokenizer | None, progress: Progress | None
) -> tuple[ReadTable, ...]:
    # The adapters of a sweep read the same files: they share one table.
    known: dict[tuple[DatasetEntry, ...], ReadTable] = {}
    for number, adapter in enumerate(read.adapters):
        _check_files(read, number)
        if adapter.datasets not in known:
            known[adapter.datasets] = read_table(
                adapter.datasets,
                folder=read.text.path.parent,
                tokenizer=tokenizer,
                sequence_len=read.fields.sequence_len,
                long_samples=read.fields.long_samples,
                random_vocabulary=model.config["vocab_size"] if model.random_weights else None,
                progress=progress,
            )
    return tuple(known[adapter.datasets] for adapter in read.adapters)


def _check_files(read: ReadJobFile, number: int) -> None:
    for position, dataset in enumerate(read.adapters[number].datasets):
        path = data_path(dataset.path, folder=read.text.path.parent)
        if path.is_file():
            continue
        place = read.adapter_place(number, "datasets", position, "path")
        if path.is_dir():
            raise JobError(f"{place}: {path} is a folder; name a file of it, each file as a dataset of its own")
        if dataset.path.startswith(DEMO):
            built_in = ", ".join(sorted(f"{DEMO}{file.name}" for file in path.parent.iterdir() if file.is_file()))
            raise JobError(f"{place}: {dataset.path} is not built in; choose one of {built_in}")
        raise JobError(f"{place}: there is no file {path}; paths are relative to the job file, mend it")


def _seed(read: ReadJobFile, adapter: AdapterEntry) -> int:
    return read.fields.seed if adapter.seed is None else adapter.seed


def _order(read: ReadJobFile, number: int, table: TokenTable) -> TrainingOrder:
    adapter = read.adapters[number]
    _check_length(read, number, num_rows=len(table))
    order = training_order(
        num_rows=len(table),
        global_batch_size=adapter.global_batch_size,
        seed=_seed(read, adapter),
        num_epochs=adapter.num_epochs or 1,
        max_steps=adapter.max_steps,
        val_split=adapter.val_split,
    )
    if not len(order.rows):
        raise JobError(
            f"{read.adapter_place(number, 'val_split')}: {adapter.val_split} keeps all "
            f"{counted(len(table), 'sample')} out of training; lower it"
        )
    _check_looks(read, number, num_steps=len(order.batch_sizes))
    return order


def _check_looks(read: ReadJobFile, number: int, *, num_steps: int) -> None:
    adapter = read.adapters[number]
    asked = [name for name in ("early_stopping_patience", "load_best_model_at_end") if getattr(adapter, name)]
    if asked and adapter.eval_steps is not None and adapter.eval_steps > num_steps:
        raise JobError(
            f"{read.adapter_place(number, 'eval_steps')}: {adapter.eval_steps} exceeds the "
            f"{counted(num_steps, 'step')} of '{adapter.name}', so that nothing is evaluated and "
            f"{asked[0]} has no effect; lower it"
        )


def _check_length(read: ReadJobFile, number: int, *, num_rows: int) -> None:
    adapter = read.adapters[number]
    if adapter.max_steps is None:
        field, num_samples = "num_epochs", (adapter.num_epochs or 1) * num_rows
    else:
        field, num_samples = "max_steps", adapter.max_steps * min(adapter.global_batch_size, num_rows)
    if num_samples > MAX_SAMPLES:
        place = read.adapter_place(number, field)
        raise JobError(f"{place}: {num_samples} samples to train on are more than the {MAX_SAMPLES} allowed; lower it")
