"""load_jobs: from a job file to Jobs, their tokens and masks, and the fingerprint that ties a plan to them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .base_model import BaseModel, find_base_model, load_tokenizer
from .errors import JobError
from .jobfile import AdapterEntry, DatasetEntry, JobFile
from .jobs import Job, LoraSettings, OptimizerSettings, Sample
from .read_jobfile import read_jobfile
from .texts import read_examples
from .tokens import Progress, Tokenizer, TokenTable, tokenize
from .training_order import TrainingOrder, training_order

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token ids and labels of one sample: unshifted, -100 where nothing is learned, as in transformers."""
DEMO_FOLDER = Path(__file__).parent / "demo"
"""What `demo:NAME` in a job file is relative to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What a job file says of the run as a whole."""

    job_file: Path
    base_model: BaseModel
    sequence_len: int
    num_stages: int
    num_replicas: int
    schedule: str
    microbatch_tokens: int
    output_dir: Path
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCounts:
    """What became of the samples of one adapter's files."""

    num_read: int
    num_truncated: int
    num_skipped: int
    num_validation: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedJobs:
    """Everything a job file and its texts hold. The engine finds a sample's tokens through `tokens`."""

    jobs: tuple[Job, ...]
    settings: JobSettings
    fingerprint: str
    """SHA-256 over the tokens and masks of every adapter's stream, in its order."""
    counts: tuple[DataCounts, ...]
    """One per job."""
    tables: tuple[TokenTable, ...]
    """One per job; adapters that read the same files share one."""
    orders: tuple[TrainingOrder, ...]
    """One per job: row of its table by `Sample.index`."""

    def tokens(self, sample: Sample) -> Encoded:
        """Token ids and labels of a sample."""
        return self.tables[sample.adapter].row(int(self.orders[sample.adapter].rows[sample.index]))

    def place(self, sample: Sample) -> str:
        """File and line a sample came from."""
        return self.tables[sample.adapter].places[int(self.orders[sample.adapter].rows[sample.index])]

    def validation(self, adapter: int) -> tuple[Encoded, ...]:
        """Token ids and labels of the samples that an adapter's `val_split` kept out of training."""
        return tuple(self.tables[adapter].row(int(row)) for row in self.orders[adapter].validation_rows)


def load_jobs(path: Path, *, progress: Progress | None = None) -> LoadedJobs:
    """Read a job file and its texts, tokenise, shuffle and cut into global batches.

    `progress` hears (what is being read, share done). Raises JobError naming file, line or field.
    """
    jobfile, _ = read_jobfile(path)
    model = find_base_model(jobfile.base_model, relative_to=path.parent)
    _check_model_limits(jobfile, model, path)
    tokenizer = _tokenizer(jobfile, model, path)
    read: dict[tuple[DatasetEntry, ...], tuple[TokenTable, int, int]] = {}
    jobs, counts, tables, orders = [], [], [], []
    for position, adapter in enumerate(jobfile.adapters):
        if adapter.datasets not in read:
            read[adapter.datasets] = _read_table(adapter, jobfile, tokenizer, path.parent, progress)
        table, num_truncated, num_skipped = read[adapter.datasets]
        order = _order(adapter, table, jobfile)
        jobs.append(_job(position, adapter, model, table, order, jobfile))
        tables.append(table)
        orders.append(order)
        counts.append(
            DataCounts(
                num_read=len(table) + num_skipped,
                num_truncated=num_truncated,
                num_skipped=num_skipped,
                num_validation=len(order.validation_rows),
            )
        )
    return LoadedJobs(
        jobs=tuple(jobs),
        settings=_settings(jobfile, model, path),
        fingerprint=_fingerprint(tables, orders),
        counts=tuple(counts),
        tables=tuple(tables),
        orders=tuple(orders),
    )


def _check_model_limits(jobfile: JobFile, model: BaseModel, path: Path) -> None:
    if jobfile.pipeline.stages > model.num_layers:
        raise JobError(
            f"{path}: pipeline.stages={jobfile.pipeline.stages} must not exceed the {model.num_layers} layers of "
            f"{model.name}; lower it"
        )
    if jobfile.sequence_len > model.max_tokens:
        raise JobError(
            f"{path}: sequence_len={jobfile.sequence_len} must not exceed the {model.max_tokens} positions of "
            f"{model.name}; lower it"
        )


def _tokenizer(jobfile: JobFile, model: BaseModel, path: Path) -> Tokenizer:
    tokenizer = load_tokenizer(model)
    if jobfile.chat_template is not None:
        template = path.parent / Path(jobfile.chat_template).expanduser()
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"{template}: cannot be read ({error}); mend chat_template in {path}") from error
    return tokenizer


def _read_table(
    adapter: AdapterEntry, jobfile: JobFile, tokenizer: Tokenizer, folder: Path, progress: Progress | None
) -> tuple[TokenTable, int, int]:
    """The tokens of an adapter's files, how many samples were truncated, and how many skipped."""
    paths = [(_data_path(entry.path, folder), entry.type) for entry in adapter.datasets]
    examples = [example for path, data_format in paths for example in read_examples(path, data_format=data_format)]
    table = tokenize(examples, tokenizer, progress=progress, label=f"tokenising {adapter.name}")
    lengths = table.num_tokens()
    long = np.flatnonzero(lengths > jobfile.sequence_len)
    if len(long):
        worst = long[np.argmax(lengths[long])]
        found = (
            f"{table.places[worst]}: {lengths[worst]} tokens; {len(long)} of {len(table)} samples of {adapter.name} "
            f"exceed sequence_len={jobfile.sequence_len}"
        )
        if jobfile.long_samples == "error":
            raise JobError(f"{found}; raise it, or set long_samples to truncate or skip")
        kept = np.flatnonzero(lengths <= jobfile.sequence_len) if jobfile.long_samples == "skip" else range(len(table))
        table = table.of_rows((int(row), int(min(lengths[row], jobfile.sequence_len))) for row in kept)
        if not len(table):
            raise JobError(f"{found}, so skipping leaves none; raise it")
    _check_targets(table, adapter, jobfile)
    skipped = len(long) if jobfile.long_samples == "skip" else 0
    return table, len(long) - skipped, skipped


def _check_targets(table: TokenTable, adapter: AdapterEntry, jobfile: JobFile) -> None:
    bare = np.flatnonzero(table.num_target_tokens() == 0)
    if len(bare):
        cut = (table.num_tokens()[bare] == jobfile.sequence_len).any() and jobfile.long_samples == "truncate"
        mend = "raise sequence_len or set long_samples to skip" if cut else "fill in or remove them"
        raise JobError(
            f"{table.places[bare[0]]}: no target tokens, so there is nothing to learn; {len(bare)} of {len(table)} "
            f"samples of {adapter.name} are like that; {mend}"
        )


def _data_path(path: str, folder: Path) -> Path:
    if path.startswith("demo:"):
        return DEMO_FOLDER / Path(path.removeprefix("demo:")).name
    return folder / Path(path).expanduser()


def _seed(adapter: AdapterEntry, jobfile: JobFile) -> int:
    return jobfile.seed if adapter.seed is None else adapter.seed


def _order(adapter: AdapterEntry, table: TokenTable, jobfile: JobFile) -> TrainingOrder:
    order = training_order(
        num_rows=len(table),
        global_batch_size=adapter.global_batch_size,
        seed=_seed(adapter, jobfile),
        num_epochs=adapter.num_epochs or 1,
        max_steps=adapter.max_steps,
        val_split=adapter.val_split,
    )
    if not len(order.rows):
        raise JobError(
            f"adapter {adapter.name}: val_split={adapter.val_split} keeps all {len(table)} samples out of training; "
            "lower it"
        )
    return order


def _job(
    position: int, adapter: AdapterEntry, model: BaseModel, table: TokenTable, order: TrainingOrder, jobfile: JobFile
) -> Job:
    try:
        targets = model.targets(adapter.target_modules)
    except JobError as error:
        raise JobError(f"adapter {adapter.name}: target_modules: {error}") from error
    return Job(
        name=adapter.name,
        global_batches=_global_batches(position, table, order),
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
        seed=_seed(adapter, jobfile),
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


def _settings(jobfile: JobFile, model: BaseModel, path: Path) -> JobSettings:
    return JobSettings(
        job_file=path,
        base_model=model,
        sequence_len=jobfile.sequence_len,
        num_stages=jobfile.pipeline.stages,
        num_replicas=jobfile.pipeline.replicas,
        schedule=jobfile.pipeline.schedule,
        microbatch_tokens=jobfile.microbatch_tokens or jobfile.sequence_len,
        output_dir=path.parent / Path(jobfile.output_dir).expanduser(),
        seed=jobfile.seed,
    )


def _fingerprint(tables: Sequence[TokenTable], orders: Sequence[TrainingOrder]) -> str:
    # Rows are hashed once, however many adapters and epochs read them; streams hash their rows' hashes.
    hashed: dict[int, tuple[bytes, ...]] = {}
    whole = hashlib.sha256()
    for table, order in zip(tables, orders, strict=True):
        rows = hashed.setdefault(id(table), _row_hashes(table))
        for part in (order.rows, order.validation_rows):
            whole.update(len(part).to_bytes(8, "little"))
            whole.update(b"".join(rows[row] for row in part.tolist()))
    return whole.hexdigest()


def _row_hashes(table: TokenTable) -> tuple[bytes, ...]:
    # Little-endian whatever the machine, so that a plan made on one machine is known on another.
    token_ids = table.token_ids.astype("<i4", copy=False)
    return tuple(
        hashlib.sha256(token_ids[begin:end].tobytes() + table.learned[begin:end].tobytes()).digest()
        for begin, end in zip(table.starts[:-1].tolist(), table.starts[1:].tolist(), strict=True)
    )
