"""From a YAML file to a checked JobFile; every complaint names the file, the line and the field."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import JobError
from .adapter_name import clash_fault
from .grid import expand
from .jobfile import AdapterEntry, DatasetEntry, Grid, JobFile, PipelineEntry
from .yaml_lines import YamlText, read_yaml

# What other trainers call our fields, where spelling alone would not lead there.
_KNOWN_ELSEWHERE = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "lora_target": "target_modules",
    "lora_target_linear": "target_modules",
    "lr": "learning_rate",
    "batch_size": "global_batch_size",
    "per_device_train_batch_size": "global_batch_size",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "steps": "max_steps",
    "dataset": "datasets",
    "cutoff_len": "sequence_len",
    "max_seq_length": "sequence_len",
    "val_set_size": "val_split",
    "model": "base_model",
    "model_name_or_path": "base_model",
}
# What needs no field here, or more than a name.
_EXPLAINED = {
    "micro_batch_size": "give global_batch_size, the samples of a whole step; microbatch_tokens cuts them",
    "gradient_accumulation_steps": "give global_batch_size: your batch size times these steps",
    "optimizer": "it is always AdamW; remove it",
    "optim": "it is always AdamW; remove it",
    "sample_packing": "samples are always packed, and never attend to each other; remove it",
    "gradient_checkpointing": "give recompute: auto, none, selective or full, beside base_model",
    "save_steps": "give train --checkpoint-every; remove it",
    "logging_steps": "every step is written down; remove it",
}
_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadJobFile:
    """A checked job file, and where everything stands in it."""

    fields: JobFile
    adapters: tuple[AdapterEntry, ...]
    """Defaults merged, grids expanded."""
    positions: tuple[int, ...]
    """For each of `adapters`, which entry of the file it came from."""
    text: YamlText

    def place(self, *keys: str | int) -> str:
        """`jobs.yaml:12: adapters[1].r` for keys such as ("adapters", 1, "r")."""
        return _place(self.text, _yaml_keys(keys, self.text.data))

    def adapter_place(self, adapter: int, *keys: str | int) -> str:
        """The same for a field of one of `adapters`."""
        return self.place("adapters", self.positions[adapter], *keys)


def read_jobfile(path: Path) -> ReadJobFile:
    """The checked job file at `path`. Raises JobError listing what is wrong, one complaint a line."""
    text = read_yaml(path)
    if not isinstance(text.data, dict):
        raise JobError(f"{path}: holds a {type(text.data).__name__}, not fields such as base_model and adapters")
    complaints = [*_complaints_about_defaults(text), *_complaints_about_grids(text)]
    try:
        jobfile = JobFile.model_validate(_with_defaults(text.data))
    except ValidationError as error:
        details = error.errors()
        # A list whose entry is wrong also counts as too short: only the entry is news.
        inner = [detail for detail in details if not any(_is_inside(other["loc"], detail["loc"]) for other in details)]
        complaints += [_complaint(detail, text) for detail in inner]
        jobfile = None
    if complaints or jobfile is None:
        shown = list(dict.fromkeys(complaints))
        more = [f"and {len(shown) - _MOST_SHOWN} more"] if len(shown) > _MOST_SHOWN else []
        raise JobError("\n".join(shown[:_MOST_SHOWN] + more))
    expanded = [(position, adapter) for position, entry in enumerate(jobfile.adapters) for adapter in expand(entry)]
    read = ReadJobFile(
        fields=jobfile,
        adapters=tuple(adapter for _, adapter in expanded),
        positions=tuple(position for position, _ in expanded),
        text=text,
    )
    _check_unique_names(read)
    return read


def _with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    defaults = data.get("defaults")
    adapters = data.get("adapters")
    if not isinstance(defaults, dict) or not isinstance(adapters, list):
        return dict(data)
    merged = [_merged(defaults, adapter) if isinstance(adapter, dict) else adapter for adapter in adapters]
    return {**data, "adapters": merged}


def _merged(defaults: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    # An adapter that decides its length by steps is not bound by a default in epochs, nor the other way round.
    lengths = ("num_epochs", "max_steps")
    own_length = any(name in adapter or name in _grid_of(adapter) for name in lengths)
    shared = {key: value for key, value in defaults.items() if not (own_length and key in lengths)}
    return {**shared, **adapter}


def _grid_of(adapter: Mapping[str, Any]) -> Mapping[str, Any]:
    grid = adapter.get("grid")
    return grid if isinstance(grid, dict) else {}


def _complaints_about_defaults(text: YamlText) -> list[str]:
    defaults = text.data.get("defaults")
    if isinstance(defaults, dict) and "name" in defaults:
        return [f"{_place(text, ('defaults', 'name'))}: each adapter needs a name of its own; move it there"]
    return []


def _complaints_about_grids(text: YamlText) -> Iterator[str]:
    # A default gives way to an adapter's grid, and to nothing else: of two values that are meant alike neither may win.
    defaults, adapters = text.data.get("defaults"), text.data.get("adapters")
    shared = defaults if isinstance(defaults, dict) else {}
    for name in _given_twice(shared, _grid_of(shared)):
        yield (
            f"{_place(text, ('defaults', name))}: {shared[name]!r} is given, and so is defaults.grid.{name}; keep one: "
            "a list in grid makes an adapter of each value"
        )
    for number, adapter in enumerate(adapters if isinstance(adapters, list) else []):
        own = adapter if isinstance(adapter, dict) else {}
        where, grid = ("its grid", own) if "grid" in own else ("the grid of defaults", shared)
        for name in _given_twice(own, _grid_of(grid)):
            yield (
                f"{_place(text, ('adapters', number, name))}: adapter {own.get('name')!r} gives {name} "
                f"as {own[name]!r} and again in {where}; keep one: a list in grid makes an adapter of each value"
            )


def _given_twice(fields: Mapping[str, Any], grid: Mapping[str, Any]) -> list[str]:
    return [name for name in Grid.model_fields if name in fields and name in grid]


def _check_unique_names(read: ReadJobFile) -> None:
    seen: dict[str, str] = {}
    for number, adapter in enumerate(read.adapters):
        folder = adapter.name.casefold()
        if folder in seen:
            why = clash_fault(adapter.name, seen[folder])
            place = read.adapter_place(number, "name")
            raise JobError(f"{place}: {adapter.name!r}: {why}; adapter names must differ, choose another")
        seen[folder] = adapter.name


def _complaint(detail: ErrorDetails, text: YamlText) -> str:
    keys = _yaml_keys(detail["loc"], text.data)
    place = _place(text, keys)
    value = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            return f"{place}: no such field; {_nearest(str(keys[-1]), keys)}"
        case "missing":
            return f"{place}: is missing; give it, `loraplex init` writes an example"
        case "too_short":
            return f"{place}: is empty; give at least one entry"
        case "tuple_type":
            return f"{place}: must be a list{_shown(value)}"
        case "model_type" | "dict_type":
            return f"{place}: must hold fields of its own{_shown(value)}"
        case "string_type" if isinstance(value, (bool, int, float)):
            # YAML reads a bare yes, no, on, off and numbers as what they are, whoever meant a text.
            return f"{place}: must be text{_shown(value)}; put it into quotes"
        case "value_error":
            return f"{place}: {detail['msg'].removeprefix('Value error, ')}{_shown(value)}"
        case _:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            return f"{place}: {message}{_shown(value)}"


def _is_inside(location: Sequence[str | int], outer: Sequence[str | int]) -> bool:
    return len(location) > len(outer) and tuple(location[: len(outer)]) == tuple(outer)


def _shown(value: Any) -> str:
    # Whole mappings and lists are there for their parts; the place already says which one is meant.
    return "" if isinstance(value, (dict, list, tuple)) else f", not {value!r}"


def _yaml_keys(location: Sequence[str | int], data: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Pydantic's location as keys into the file: defaults instead of an adapter that took its value from there."""
    keys = tuple(location)
    if keys[:1] == ("adapters",) and len(keys) > 2:
        adapter = data["adapters"][keys[1]]
        if keys[2] not in adapter and keys[2] in (data.get("defaults") or {}):
            return ("defaults", *keys[2:])
    return keys


def _place(text: YamlText, keys: Sequence[str | int]) -> str:
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    return f"{text.path}:{text.line(keys)}: {dotted or 'file'}"


def _nearest(key: str, keys: Sequence[str | int]) -> str:
    if key in _EXPLAINED:
        return _EXPLAINED[key]
    here = _fields_at(keys)
    if key in _KNOWN_ELSEWHERE and _KNOWN_ELSEWHERE[key] in here:
        return f"it is called {_KNOWN_ELSEWHERE[key]} here"
    close = get_close_matches(key.replace("-", "_"), here, n=1)
    if close:
        return f"did you mean {close[0]}?"
    if len(keys) == 1 and (key in AdapterEntry.model_fields or key in _KNOWN_ELSEWHERE):
        return "it belongs to an adapter: write it under adapters, or under defaults for all of them"
    return f"the fields here are {', '.join(sorted(here))}"


def _fields_at(keys: Sequence[str | int]) -> tuple[str, ...]:
    inside = [key for key in keys[:-1] if isinstance(key, str)]
    models: dict[str, type[BaseModel]] = {"grid": Grid, "datasets": DatasetEntry, "pipeline": PipelineEntry}
    for name in reversed(inside):
        if name in models:
            return tuple(models[name].model_fields)
    return tuple((AdapterEntry if inside else JobFile).model_fields)
