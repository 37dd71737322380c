"""`bench train`: every system in a process of its own, one after another, and what they answer."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from ..traces.costs import RecomputeMode
from ..traces.errors import InputError
from .bench_train_attention import settled_attention
from .bench_train_report import NOT_INSTALLED
from .bench_train_spec import OURS, RECORD, SYSTEMS, WORKLOADS, Question, check_names, growth_points, points_of
from .flash_attention import ATTENTION

Record = dict[str, Any]
_GRACE_S = 3.0
"""For a process that is told to stop; one in a long call of C does not hear of it."""
PACKAGES = ("torch", "triton", "transformers", "peft", "liger-kernel", "unsloth", "flash-attn-4")
"""Whose versions go with the figures."""


def make_questions(
    *,
    model: str,
    random_weights: bool,
    load_in_4bit: bool,
    num_layers: int | None,
    device: str,
    attention: str,
    systems: tuple[str, ...],
    workloads: tuple[str, ...],
    dropouts: tuple[float, ...],
    seconds: float,
    microbatch_tokens: int,
    global_batch_size: int,
    recompute: str,
    growth: bool,
    lengths_folder: Path | None,
) -> tuple[Question, ...]:
    """One for each system that is to be measured. Raises InputError for a name or a choice that is unknown."""
    mode = next((mode for mode in get_args(RecomputeMode) if mode == recompute), None)
    if mode is None:
        raise InputError(f"--recompute {recompute} is unknown; choose from {', '.join(get_args(RecomputeMode))}")
    # Peers are measured with weights of 16 bits only.
    known = ("ours",) if growth else OURS if load_in_4bit else tuple(SYSTEMS)
    chosen = check_names(systems, known=known, option="--system")
    kinds = check_names(workloads, known=tuple(WORKLOADS), option="--workload")
    if lengths_folder is not None and not lengths_folder.is_dir():
        raise InputError(f"--lengths {lengths_folder} is no folder; give one with a NAME.csv for each data set")
    from ..planner.inputs.base_model import find_base_model
    from .base_folder import check_has_weights

    # Here and not in each process: a wrong name is told once.
    base = find_base_model(
        model,
        relative_to=Path.cwd(),
        random_weights=random_weights,
        load_in_4bit=load_in_4bit,
        num_layers=num_layers,
    )
    check_has_weights(base)
    settled = settled_attention(attention, device=device, model=base)
    return tuple(
        Question(
            system=system,
            model=model,
            random_weights=random_weights,
            load_in_4bit=load_in_4bit,
            num_layers=num_layers,
            device=device,
            seconds=seconds,
            recompute=mode if system in OURS else "none",
            attention=settled,
            lengths_folder=None if lengths_folder is None else str(lengths_folder),
            points=growth_points(microbatch_tokens=microbatch_tokens, dropout=dropouts[0] if dropouts else 0.0)
            if growth
            else points_of(
                system,
                workloads=kinds,
                dropouts=dropouts or (0.0, 0.1),
                microbatch_tokens=microbatch_tokens,
                global_batch_size=global_batch_size,
            ),
        )
        for system in chosen
    )


def surroundings(device: str) -> dict[str, Any]:
    """GPU and versions."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = NOT_INSTALLED
    gpu = "cpu"
    if device == "cuda":
        # In a process of its own: a CUDA context in this one would take memory from those that are measured.
        asked = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
        gpu = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return {"gpu": gpu, "versions": found}


def ask_all(questions: Sequence[Question]) -> Generator[Record, None, None]:
    """All records, in the order of the questions, each as it comes."""
    for question in questions:
        yield from ask(question)


def _end(process: subprocess.Popen[str]) -> None:
    # As Ctrl-C would, so that it takes its temporary folder away. At a terminal that has reached it too: told twice, it
    # would leave off doing so.
    for number in (None, signal.SIGINT, signal.SIGKILL):
        if number is not None:
            process.send_signal(number)
        try:
            process.wait(timeout=_GRACE_S)
            return
        except subprocess.TimeoutExpired:
            continue


def ask(question: Question) -> Generator[Record, None, None]:
    """The records of one system; what a process that broke down left unanswered is recorded as skipped, and why."""
    command = [sys.executable, "-m", "loraplex.engine.bench_train_worker", question.to_json()]
    answered = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {ATTENTION: question.attention},
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.startswith(RECORD):
                        answered += 1
                        yield json.loads(line.removeprefix(RECORD))
            except BaseException:
                # Ctrl-C, say, or nobody asks on: it must not go on measuring by itself.
                _end(process)
                raise
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    for point in question.points[answered:]:
        why = f"its process ended with {process.returncode}: {said[-1] if said else 'no word'}"
        yield {**question.named(point), "skipped": why}
