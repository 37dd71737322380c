"""A Plan as a versioned JSON file for people and machines, sealed by a fingerprint. Nothing in it is ever executed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..traces.counted import counted
from ..traces.files import write_atomically
from .errors import PlanError
from .jobs import Job
from .plan import Microbatch, Plan
from .plan_reader import plan_from_document
from .plan_report import plan_figures, waste_as_json
from .verify import verify

FORMAT = "loraplex-plan"
VERSION = 1
_UNSEALED = ("fingerprint", "summary", "seconds")
"""Outside the fingerprint: itself, what is derived from the rest, and timings (solver ones by `_sealed`)."""


def plan_fingerprint(plan: Plan) -> str:
    """SHA-256 over everything a plan says, timings and derived figures left out."""
    return _fingerprint(_content(plan))


def save_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan as JSON, one line a global batch and one a microbatch; whole or not at all.

    Raises PlanError where a step enters before the one it needs is complete.
    """
    content = _content(plan)
    header = {"format": FORMAT, "version": VERSION, "fingerprint": _fingerprint(content), "summary": _summary(plan)}
    document = {**header, **content}
    write_atomically(path, "".join(_pretty(document)))


def load_plan(path: Path | str, *, check: bool = True) -> Plan:
    """Read a plan file. Raises PlanError naming file and field.

    With `check` (the default) an edited file and every broken rule of `verify` are refused too; `loraplex check` reads
    without, so that it can list them.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(
            f"{path}: not a text file in UTF-8 ({error.reason}); give a plan written by loraplex plan"
        ) from error
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}); give a plan written by loraplex plan") from error
    document = _parse(text, where=str(path))
    plan = plan_from_document(document, where=str(path))
    if check:
        stated, found = document["fingerprint"], _fingerprint(document)
        if stated != found:
            raise PlanError(
                f"{path}: fingerprint {stated[:12]}... does not fit the content ({found[:12]}...): the plan was edited "
                "by hand or damaged; make it anew with loraplex plan"
            )
        violations = verify(plan)
        if violations:
            raise PlanError(
                f"{path}: breaks {counted(len(violations), 'rule')}, first: {violations[0].message}; see all "
                "with loraplex check"
            )
    return plan


def is_sealed(path: Path | str) -> bool:
    """Whether a readable plan file still carries the fingerprint of its content."""
    document = _parse(Path(path).read_text(encoding="utf-8"), where=str(path))
    return bool(document.get("fingerprint") == _fingerprint(document))


def _parse(text: str, *, where: str) -> dict[str, Any]:
    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise PlanError(f"{where}: the key '{key}' stands twice in one object; remove one")
            found[key] = value
        return found

    def no_constant(name: str) -> None:
        raise PlanError(f"{where}: {name} is no number a plan may hold; make it anew with loraplex plan")

    try:
        document = json.loads(text, object_pairs_hook=no_twins, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{where}, line {error.lineno}: {error.msg}; a plan is JSON written by loraplex plan"
        ) from error
    except RecursionError as error:
        raise PlanError(f"{where}: nested too deeply for a plan; make it anew with loraplex plan") from error
    except ValueError as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{where}: {error}; make it anew with loraplex plan") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PlanError(f"{where}: 'format' is not '{FORMAT}'; give a plan written by loraplex plan")
    if document.get("version") != VERSION or isinstance(document.get("version"), bool):
        raise PlanError(
            f"{where}: version {document.get('version')!r} is unknown, this loraplex reads version {VERSION}; "
            "make the plan anew or upgrade"
        )
    return document


def _sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    sealed = {key: value for key, value in document.items() if key not in (*_UNSEALED, "format", "version")}
    sealed["solver"] = [{key: value for key, value in entry.items() if key != "seconds"} for entry in sealed["solver"]]
    return sealed


def _fingerprint(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(_sealed(document), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _content(plan: Plan) -> dict[str, Any]:
    return {
        "num_stages": plan.num_stages,
        "num_replicas": plan.num_replicas,
        "microbatch_tokens": plan.microbatch_tokens,
        "pad_multiple": plan.pad_multiple,
        "schedule": plan.schedule,
        "strategy": plan.strategy,
        "lower_bound_slots": plan.lower_bound_slots,
        "data_fingerprint": plan.data_fingerprint,
        "seconds": round(plan.seconds, 6),
        "adapter_groups": [[plan.jobs[adapter].name for adapter in members] for members in plan.adapter_groups],
        "solver": [
            {
                "instance": record.instance,
                "status": record.status,
                "num_microbatches": record.num_microbatches,
                "lower_bound": record.lower_bound,
                "seconds": round(record.seconds, 6),
            }
            for record in plan.solver
        ],
        "jobs": [_job_document(job) for job in plan.jobs],
        "microbatches": [_microbatch_document(batch, plan=plan) for batch in plan.microbatches],
    }


def _summary(plan: Plan) -> dict[str, Any]:
    figures = plan_figures(plan)
    return {
        "note": "derived from the rest and not read back",
        "slots": figures.slots,
        "stall_slots": figures.stall_slots,
        "gap": round(figures.gap(), 6),
        "tokens": plan.num_tokens(),
        "adapters": waste_as_json(plan),
    }


def _job_document(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "lora": {
            "r": job.lora.r,
            "lora_alpha": float(job.lora.lora_alpha),
            "lora_dropout": float(job.lora.lora_dropout),
            "target_modules": list(job.lora.target_modules),
            "use_rslora": job.lora.use_rslora,
        },
        "optimizer": {
            "learning_rate": float(job.optimizer.learning_rate),
            "lr_scheduler": job.optimizer.lr_scheduler,
            "warmup_ratio": float(job.optimizer.warmup_ratio),
            "weight_decay": float(job.optimizer.weight_decay),
            "max_grad_norm": _float(job.optimizer.max_grad_norm),
            "betas": [float(beta) for beta in job.optimizer.betas],
            "eps": float(job.optimizer.eps),
        },
        "seed": job.seed,
        "weight": float(job.weight),
        "deadline_ms": _float(job.deadline_ms),
        "sample_fields": ["index", "num_tokens", "num_target_tokens"],
        "global_batches": [
            [[int(sample.index), int(sample.num_tokens), int(sample.num_target_tokens)] for sample in batch]
            for batch in job.global_batches
        ],
    }


def _float(value: float | None) -> float | None:
    # A whole number given as int must hash like the float that reading it back makes.
    return None if value is None else float(value)


def _microbatch_document(batch: Microbatch, *, plan: Plan) -> dict[str, Any]:
    shares: dict[str, list[int]] = {}
    for sample in batch.samples:
        shares.setdefault(plan.jobs[sample.adapter].name, []).append(int(sample.index))
    return {"tokens": batch.padded_tokens(plan.pad_multiple), "samples": shares}


def _pretty(document: Mapping[str, Any]) -> Iterator[str]:
    """JSON with one line for each field, global batch and microbatch."""
    yield "{\n"
    last = len(document) - 1
    for position, (key, value) in enumerate(document.items()):
        comma = "" if position == last else ","
        if key in ("microbatches", "solver", "adapter_groups"):
            yield f" {json.dumps(key)}: {_lines(value, indent='  ')}{comma}\n"
        elif key == "jobs":
            jobs = ",\n".join(_pretty_job(job) for job in value)
            yield f' "jobs": [\n{jobs}\n ]{comma}\n'
        else:
            yield f" {json.dumps(key)}: {json.dumps(value)}{comma}\n"
    yield "}\n"


def _pretty_job(job: Mapping[str, Any]) -> str:
    fields = [
        f"   {json.dumps(key)}: {_lines(value, indent='    ') if key == 'global_batches' else json.dumps(value)}"
        for key, value in job.items()
    ]
    return "  {\n" + ",\n".join(fields) + "\n  }"


def _lines(values: list[Any], *, indent: str) -> str:
    if not values:
        return "[]"
    return "[\n" + ",\n".join(indent + json.dumps(value) for value in values) + f"\n{indent[:-1]}]"
