"""LoadedJobs: the Jobs of a job file with the tokens they stand for. load_jobs.py makes it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...traces.memory_costs import RecomputeChoice
from ..jobs import EvaluationSettings, Job, LoggerName, OnNonfinite, Sample
from .base_model import BaseModel
from .tokens import TokenTable
from .training_order import TrainingOrder

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token ids and labels of one sample: unshifted, -100 where nothing is learned, as in transformers."""


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
    recompute: RecomputeChoice
    output_dir: Path
    seed: int
    report_to: tuple[LoggerName, ...]
    on_nonfinite: OnNonfinite


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
    """SHA-256 over the tokens and masks of every adapter's stream, in its order; empty where some are lengths alone."""
    counts: tuple[DataCounts, ...]
    """One per job."""
    evaluation: tuple[EvaluationSettings, ...]
    """One per job."""
    tables: tuple[TokenTable, ...]
    """One per job; adapters that read the same files share one."""
    orders: tuple[TrainingOrder, ...]
    """One per job: row of its table by `Sample.index`."""
    init_adapters: tuple[Path | None, ...]
    """One per job: folder of the PEFT adapter it goes on from."""

    def tokens(self, sample: Sample) -> Encoded:
        """Token ids and labels of a sample."""
        return self.tables[sample.adapter].row(int(self.orders[sample.adapter].rows[sample.index]))

    def place(self, sample: Sample) -> str:
        """File and line a sample came from."""
        return self.tables[sample.adapter].places[int(self.orders[sample.adapter].rows[sample.index])]

    def validation(self, adapter: int) -> tuple[Encoded, ...]:
        """Token ids and labels of the samples that an adapter's `val_split` kept out of training."""
        return tuple(self.tables[adapter].row(int(row)) for row in self.orders[adapter].validation_rows)


def data_fingerprint(tables: Sequence[TokenTable], orders: Sequence[TrainingOrder]) -> str:
    """SHA-256 over tokens and masks of what each adapter trains on and validates on, in order.

    Empty when an adapter has lengths alone, which no texts can be compared with.
    """
    if not all(table.has_tokens() for table in tables):
        return ""
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
