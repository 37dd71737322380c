"""A parsed plan document as a Plan: every type and number checked, every error naming the field."""

from collections.abc import Mapping
from typing import Any, get_args

from .errors import PlanError
from .jobs import Job, LoraSettings, OptimizerSettings, Sample, Scheduler
from .packing.workload import MAX_TOKENS
from .plan import Microbatch, Plan, SolverRecord

_PLAN_FIELDS = [
    "format",
    "version",
    "fingerprint",
    "num_stages",
    "num_replicas",
    "microbatch_tokens",
    "pad_multiple",
    "schedule",
    "strategy",
    "lower_bound_slots",
    "data_fingerprint",
    "seconds",
    "summary",
    "adapter_groups",
    "solver",
    "jobs",
    "microbatches",
]
_JOB_FIELDS = ["name", "lora", "optimizer", "seed", "weight", "deadline_ms", "sample_fields", "global_batches"]
_LORA_FIELDS = ["r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"]
_OPTIMIZER_FIELDS = ["learning_rate", "lr_scheduler", "warmup_ratio", "weight_decay", "max_grad_norm", "betas", "eps"]
_SOLVER_FIELDS = ["instance", "status", "num_microbatches", "lower_bound", "seconds"]
_SAMPLE_FIELDS = ["index", "num_tokens", "num_target_tokens"]
_MAX_STAGES = 2**16


def plan_from_document(document: Mapping[str, Any], *, where: str) -> Plan:
    """The Plan a document describes. `where` names the file in errors (PlanError)."""
    _fields(document, _PLAN_FIELDS, where=where)
    _text(document["fingerprint"], where=f"{where}: fingerprint")
    jobs = tuple(
        _job(entry, adapter=adapter, where=f"{where}: jobs[{adapter}]")
        for adapter, entry in enumerate(_list(document["jobs"], where=f"{where}: jobs"))
    )
    adapters = {job.name: adapter for adapter, job in enumerate(jobs)}
    if len(adapters) != len(jobs):
        raise PlanError(f"{where}: jobs share a name; names must differ: make the plan anew")
    samples = [{sample.index: sample for batch in job.global_batches for sample in batch} for job in jobs]
    return Plan(
        jobs=jobs,
        num_stages=_count(document["num_stages"], where=f"{where}: num_stages", most=_MAX_STAGES),
        num_replicas=_count(document["num_replicas"], where=f"{where}: num_replicas", most=_MAX_STAGES),
        microbatch_tokens=_count(document["microbatch_tokens"], where=f"{where}: microbatch_tokens"),
        pad_multiple=_count(document["pad_multiple"], where=f"{where}: pad_multiple"),
        schedule=_text(document["schedule"], where=f"{where}: schedule"),
        strategy=_text(document["strategy"], where=f"{where}: strategy"),
        lower_bound_slots=_count(document["lower_bound_slots"], where=f"{where}: lower_bound_slots", least=0),
        data_fingerprint=_text(document["data_fingerprint"], where=f"{where}: data_fingerprint"),
        seconds=_number(document["seconds"], where=f"{where}: seconds", least=0.0),
        adapter_groups=tuple(
            _adapter_group(members, adapters=adapters, where=f"{where}: adapter_groups[{position}]")
            for position, members in enumerate(_list(document["adapter_groups"], where=f"{where}: adapter_groups"))
        ),
        solver=tuple(
            _solver(entry, where=f"{where}: solver[{position}]")
            for position, entry in enumerate(_list(document["solver"], where=f"{where}: solver"))
        ),
        microbatches=tuple(
            _microbatch(entry, adapters=adapters, samples=samples, where=f"{where}: microbatches[{position}]")
            for position, entry in enumerate(_list(document["microbatches"], where=f"{where}: microbatches"))
        ),
    )


def _job(entry: Any, *, adapter: int, where: str) -> Job:
    _fields(entry, _JOB_FIELDS, where=where)
    if entry["sample_fields"] != _SAMPLE_FIELDS:
        raise PlanError(f"{where}: sample_fields={entry['sample_fields']!r} must be {_SAMPLE_FIELDS}")
    batches = []
    indices: set[int] = set()
    for number, batch in enumerate(_list(entry["global_batches"], where=f"{where}: global_batches")):
        inside = f"{where}: global_batches[{number}]"
        samples = []
        for row in _list(batch, where=inside):
            if not isinstance(row, list) or len(row) != 3:
                raise PlanError(f"{inside}: {row!r} must be [index, num_tokens, num_target_tokens]")
            index = _count(row[0], where=f"{inside}: index", least=0)
            if index in indices:
                raise PlanError(f"{inside}: index {index} stands twice in this job; indices are unique")
            indices.add(index)
            samples.append(
                Sample(
                    adapter=adapter,
                    global_batch=number,
                    index=index,
                    num_tokens=_count(row[1], where=f"{inside}: num_tokens of sample {index}"),
                    num_target_tokens=_count(row[2], where=f"{inside}: num_target_tokens of sample {index}", least=0),
                )
            )
        batches.append(tuple(samples))
    deadline = entry["deadline_ms"]
    return Job(
        name=_text(entry["name"], where=f"{where}: name", least=1),
        global_batches=tuple(batches),
        lora=_lora(entry["lora"], where=f"{where}: lora"),
        optimizer=_optimizer(entry["optimizer"], where=f"{where}: optimizer"),
        seed=_count(entry["seed"], where=f"{where}: seed", least=-(2**63), most=2**64),
        weight=_number(entry["weight"], where=f"{where}: weight", least=0.0),
        deadline_ms=None if deadline is None else _number(deadline, where=f"{where}: deadline_ms", least=0.0),
    )


def _lora(entry: Any, *, where: str) -> LoraSettings:
    _fields(entry, _LORA_FIELDS, where=where)
    if not isinstance(entry["use_rslora"], bool):
        raise PlanError(f"{where}: use_rslora={entry['use_rslora']!r} must be true or false")
    modules = _list(entry["target_modules"], where=f"{where}: target_modules")
    return LoraSettings(
        r=_count(entry["r"], where=f"{where}: r"),
        lora_alpha=_number(entry["lora_alpha"], where=f"{where}: lora_alpha"),
        lora_dropout=_number(entry["lora_dropout"], where=f"{where}: lora_dropout", least=0.0, most=1.0),
        target_modules=tuple(_text(name, where=f"{where}: target_modules", least=1) for name in modules),
        use_rslora=entry["use_rslora"],
    )


def _optimizer(entry: Any, *, where: str) -> OptimizerSettings:
    _fields(entry, _OPTIMIZER_FIELDS, where=where)
    scheduler = entry["lr_scheduler"]
    if scheduler not in get_args(Scheduler):
        raise PlanError(f"{where}: lr_scheduler={scheduler!r} must be one of {', '.join(get_args(Scheduler))}")
    betas = [_number(beta, where=f"{where}: betas", least=0.0, most=1.0) for beta in _list(entry["betas"], where=where)]
    if len(betas) != 2:
        raise PlanError(f"{where}: betas={entry['betas']!r} must be two numbers")
    clip = entry["max_grad_norm"]
    return OptimizerSettings(
        learning_rate=_number(entry["learning_rate"], where=f"{where}: learning_rate", least=0.0),
        lr_scheduler=scheduler,
        warmup_ratio=_number(entry["warmup_ratio"], where=f"{where}: warmup_ratio", least=0.0, most=1.0),
        weight_decay=_number(entry["weight_decay"], where=f"{where}: weight_decay", least=0.0),
        max_grad_norm=None if clip is None else _number(clip, where=f"{where}: max_grad_norm", least=0.0),
        betas=(betas[0], betas[1]),
        eps=_number(entry["eps"], where=f"{where}: eps", least=0.0),
    )


def _solver(entry: Any, *, where: str) -> SolverRecord:
    _fields(entry, _SOLVER_FIELDS, where=where)
    return SolverRecord(
        instance=_text(entry["instance"], where=f"{where}: instance"),
        status=_text(entry["status"], where=f"{where}: status"),
        num_microbatches=_count(entry["num_microbatches"], where=f"{where}: num_microbatches", least=0),
        lower_bound=_count(entry["lower_bound"], where=f"{where}: lower_bound", least=0),
        seconds=_number(entry["seconds"], where=f"{where}: seconds", least=0.0),
    )


def _microbatch(entry: Any, *, adapters: Mapping[str, int], samples: list[dict[int, Sample]], where: str) -> Microbatch:
    _fields(entry, ["tokens", "samples"], where=where)
    _count(entry["tokens"], where=f"{where}: tokens", least=0)
    if not isinstance(entry["samples"], dict):
        raise PlanError(f"{where}: samples={entry['samples']!r} must map adapter names to lists of sample indices")
    found = []
    for name, indices in entry["samples"].items():
        known = samples[_known(name, adapters, where=where)]
        for index in _list(indices, where=f"{where}: samples of '{name}'"):
            if _count(index, where=f"{where}: samples of '{name}'", least=0) not in known:
                raise PlanError(f"{where}: adapter '{name}' has no sample {index}; make the plan anew")
            found.append(known[index])
    return Microbatch(samples=tuple(found))


def _adapter_group(members: Any, *, adapters: Mapping[str, int], where: str) -> tuple[int, ...]:
    return tuple(_known(name, adapters, where=where) for name in _list(members, where=where))


def _known(name: Any, adapters: Mapping[str, int], *, where: str) -> int:
    if not isinstance(name, str) or name not in adapters:
        raise PlanError(f"{where}: {name!r} is the name of no job in this plan; make the plan anew")
    return adapters[name]


def _fields(entry: Any, names: list[str], *, where: str) -> None:
    if not isinstance(entry, dict):
        raise PlanError(f"{where}: {_short(entry)} must be an object with the fields {', '.join(names)}")
    missing = [name for name in names if name not in entry]
    unknown = [name for name in entry if name not in names]
    if missing or unknown:
        raise PlanError(
            f"{where}: fields missing {missing}, unknown {unknown}; a plan has exactly those loraplex plan writes"
        )


def _list(value: Any, *, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PlanError(f"{where}: {_short(value)} must be a list")
    return value


def _text(value: Any, *, where: str, least: int = 0) -> str:
    if not isinstance(value, str) or len(value) < least:
        raise PlanError(f"{where}: {_short(value)} must be a text of at least {least} characters")
    return value


def _count(value: Any, *, where: str, least: int = 1, most: int = MAX_TOKENS) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PlanError(f"{where}: {_short(value)} must be an integer between {least} and {most}")
    return value


def _number(value: Any, *, where: str, least: float = -1e300, most: float = 1e300) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise PlanError(f"{where}: {_short(value)} must be a number between {least:g} and {most:g}")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
