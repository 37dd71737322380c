"""What `loraplex data show` shows: one sample as the model will read it, and which parts of it are learned."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.text import Text

from ...traces.counted import counted
from ..errors import JobError
from ..jobs import Sample
from .base_model import load_tokenizer
from .loaded_jobs import LoadedJobs
from .tokens import IGNORED, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Neighbouring tokens that are all learned, or all only read."""

    text: str
    learned: bool
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """One sample of one adapter, rendered and cut into pieces."""

    adapter: str
    place: str
    """File and line it came from."""
    global_batch: int
    index: int
    num_tokens: int
    num_target_tokens: int
    pieces: tuple[Piece, ...]


def shown_samples(loaded: LoadedJobs, *, index: int = 0, adapter: str | None = None) -> tuple[ShownSample, ...]:
    """Sample number `index` in training order, of one adapter or of each that has so many.

    Raises JobError for an adapter or index that no job has.
    """
    names = [job.name for job in loaded.jobs]
    if adapter is not None and adapter not in names:
        raise JobError(f"adapter {adapter!r} is not in {loaded.settings.job_file}; it has {', '.join(names)}")
    chosen = [job for job in loaded.jobs if adapter in (None, job.name)]
    longest = max(job.num_samples() for job in chosen)
    if not 0 <= index < longest:
        raise JobError(f"sample {index} does not exist: they count from 0 to {longest - 1}")
    tokenizer = load_tokenizer(loaded.settings.base_model)
    samples = [sample for job in chosen for batch in job.global_batches for sample in batch if sample.index == index]
    return tuple(
        ShownSample(
            adapter=names[sample.adapter],
            place=loaded.place(sample),
            global_batch=sample.global_batch,
            index=sample.index,
            num_tokens=sample.num_tokens,
            num_target_tokens=sample.num_target_tokens,
            pieces=_pieces(loaded, sample, tokenizer),
        )
        for sample in samples
    )


def _pieces(loaded: LoadedJobs, sample: Sample, tokenizer: Tokenizer) -> tuple[Piece, ...]:
    token_ids, labels = loaded.tokens(sample)
    pieces = []
    for learned, run in groupby(zip(token_ids.tolist(), labels.tolist(), strict=True), key=_is_learned):
        ids = [token_id for token_id, _ in run]
        pieces.append(Piece(text=str(tokenizer.decode(ids)), learned=learned, num_tokens=len(ids)))
    return tuple(pieces)


def _is_learned(token: tuple[int, int]) -> bool:
    return token[1] != IGNORED


def samples_as_json(loaded: LoadedJobs, shown: Sequence[ShownSample]) -> dict[str, Any]:
    """The samples and what became of each adapter's files, for machines."""
    adapters = [
        {
            "name": job.name,
            **asdict(counts),
            "num_samples": job.num_samples(),
            "num_steps": len(job.global_batches),
            "num_tokens": job.num_tokens(),
        }
        for job, counts in zip(loaded.jobs, loaded.counts, strict=True)
    ]
    return {
        "job_file": str(loaded.settings.job_file),
        "data_fingerprint": loaded.fingerprint,
        "adapters": adapters,
        "samples": [asdict(sample) for sample in shown],
    }


def samples_as_text(loaded: LoadedJobs, shown: Sequence[ShownSample]) -> Text:
    """The samples for people: learned parts bold and between ⟦ and ⟧, so that they show without colours too."""
    counts = {job.name: (job, count) for job, count in zip(loaded.jobs, loaded.counts, strict=True)}
    text = Text()
    for sample in shown:
        job, count = counts[sample.adapter]
        text.append(sample.adapter, style="bold cyan")
        text.append(
            f"  {counted(job.num_samples(), 'sample')} in {counted(len(job.global_batches), 'step')}, "
            f"{counted(job.num_tokens(), 'token')}"
            f" ({count.num_read:,} read, {count.num_skipped:,} skipped, {count.num_truncated:,} truncated, "
            f"{count.num_validation:,} kept for validation)\n"
            f"sample {sample.index} of step {sample.global_batch}: {sample.place}, {sample.num_tokens} tokens, "
            f"{sample.num_target_tokens} of them targets\n",
            style="dim",
        )
        for piece in sample.pieces:
            text.append(f"⟦{piece.text}⟧" if piece.learned else piece.text, style="bold green" * piece.learned)
        text.append("\n\n")
    text.append(f"Between ⟦ and ⟧ is what is learned. Data fingerprint {loaded.fingerprint[:12]}.", style="dim")
    return text
