"""`python -m loraplex.engine.bench_train_worker QUESTION`: one system of `bench train` in a process of its own.

A process of its own gives each system clean memory, and Liger's patches stay with the systems that want them. Every
figure is one line of JSON on stdout that starts with RECORD; what libraries print goes to stderr.
"""

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..planner.inputs.base_model import find_base_model
from .base_folder import base_model_folder
from .bench_train_laps import Measured, let_go, peak_memory_gib
from .bench_train_ours import measure_ours
from .bench_train_peers import ASSEMBLIES, build_base, measure_peer
from .bench_train_spec import OURS, RECORD, Point, Question
from .bench_train_work import adapter_data
from .devices import choose_device
from .errors import EngineError

Measure = Callable[[Point], tuple[Measured, dict[str, Any]]]


def main() -> None:
    """Answer the question on the command line."""
    question = Question.from_json(sys.argv[1])
    # Libraries print to stdout; the figures alone belong there.
    figures = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for record in answer(question):
        print(RECORD + json.dumps(record), file=figures, flush=True)


def answer(question: Question) -> Any:
    """Yield one flat record for every point, with `skipped` in place of figures where there are none."""
    missing = _missing(question)
    if missing:
        yield from ({**question.named(point), "skipped": missing} for point in question.points)
        return
    with tempfile.TemporaryDirectory(prefix="loraplex-bench-") as folder:
        measure = _measure(question, Path(folder))
        for point in question.points:
            yield {**question.named(point), **_figures(measure, point, question)}
            let_go()


def _missing(question: Question) -> str | None:
    if question.system in OURS:
        return None
    if question.system not in ASSEMBLIES:
        return (
            f"{question.system} is installed, but this benchmark does not drive it yet"
            if _is_there(question.system)
            else f"{question.system} is not installed"
        )
    wanted = {
        "peft": ASSEMBLIES[question.system].adapters is not None,
        "liger_kernel": ASSEMBLIES[question.system].liger,
    }
    if wanted["liger_kernel"] and question.device != "cuda":
        return "Liger's kernels need a GPU"
    lacking = [name for name, needed in wanted.items() if needed and not _is_there(name)]
    return f"{', '.join(lacking)} is not installed" if lacking else None


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _measure(question: Question, folder: Path) -> Measure:
    model = find_base_model(
        question.model,
        relative_to=Path.cwd(),
        random_weights=question.random_weights,
        load_in_4bit=question.load_in_4bit,
        num_layers=question.num_layers,
    )
    base_folder = base_model_folder(model, output_dir=folder)
    device = choose_device(question.device)
    if question.system in OURS:
        return lambda point: measure_ours(point, question, model=model, folder=base_folder, device=device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = build_base(base_folder, ASSEMBLIES[question.system], model=model, dtype=dtype, device=device)
    return lambda point: measure_peer(base, point, question)


def _figures(measure: Measure, point: Point, question: Question) -> dict[str, Any]:
    try:
        measured, facts = measure(point)
    except torch.OutOfMemoryError as error:
        # Also a result: this system needs more memory than there is.
        return {"skipped": f"out of memory: {str(error).splitlines()[0]}"}
    except EngineError as error:
        return {"skipped": str(error)}
    allocated, reserved = peak_memory_gib(torch.device(question.device))
    facts = {"peak_memory_gib": allocated, "peak_reserved_gib": reserved} | facts
    num_tokens = sum(one.num_tokens() for one in adapter_data(point, question))
    return {
        "tokens_per_s": round(measured.tokens_per_s, 1),
        "spread": round(measured.spread, 4),
        "hours_for_all_jobs": round(num_tokens / measured.tokens_per_s / 3600, 4),
        "num_microbatches": measured.num_microbatches,
        "num_tokens": measured.num_tokens,
        **{
            name: round(fact, 2) if name.endswith("_gib") and fact is not None else fact for name, fact in facts.items()
        },
    }


if __name__ == "__main__":
    main()
