"""A LoRA adapter as PEFT saved it: its settings, its matrices by linear, and what we cannot do with it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..planner.errors import JobError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(?P<linear>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")

# What must stand in adapter_config.json, where it stands at all, for the adapter to be W + scaling * B A and no more.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
}
# These initial values change the base model itself, which the adapter's file does not hold.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftAdapter:
    """A plain LoRA adapter on disk."""

    folder: Path
    config: Mapping[str, Any]
    """adapter_config.json."""
    lora_ranks: Mapping[str, int]
    """r of each linear that it changes, by the linear's name in the whole model, in the file's order."""
    keys: Mapping[str, tuple[str, str]]
    """By linear, the names of A and B in the file."""

    def scaling(self, linear: str) -> float:
        """Factor on B A of one linear: PEFT's rule, with its rank and alpha patterns."""
        r = self.lora_ranks[linear]
        alpha = _by_pattern(self.config.get("alpha_pattern"), linear, self.config.get("lora_alpha", 8))
        return float(alpha / (r**0.5 if self.config.get("use_rslora") else r))

    def matrices(self, linear: str) -> tuple[Tensor, Tensor]:
        """A `[r, K]` and B `[N, r]` of one linear, read now, in the dtype they were saved in."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            a, b = (file.get_tensor(key) for key in self.keys[linear])
        return a, b

    def shapes(self, linear: str) -> tuple[int, int]:
        """(N, K) of the linear that its matrices fit."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            a, b = (file.get_slice(key).get_shape() for key in self.keys[linear])
        return b[0], a[1]


def read_peft_adapter(folder: Path) -> PeftAdapter:
    """The adapter in a PEFT folder; reads no matrices yet.

    Raises JobError naming what is missing or broken, and what makes it more than a plain LoRA.
    """
    config = _config(folder)
    _check_plain(folder, config)
    shapes = _saved_shapes(folder)
    keys: dict[str, dict[str, str]] = {}
    for key in shapes:
        match = _MATRIX.fullmatch(key.removeprefix(_PREFIX))
        if match is None:
            raise JobError(f"{folder / WEIGHTS}: '{key}' is no matrix of a linear's LoRA; only those are understood")
        keys.setdefault(match["linear"], {})[match["side"]] = key
    ranks = {}
    for linear, sides in keys.items():
        if set(sides) != {"A", "B"}:
            raise JobError(f"{folder / WEIGHTS}: {linear} has lora_{next(iter(sides))} alone; save the adapter anew")
        ranks[linear] = _lora_rank(folder, config, linear, shapes[sides["A"]], shapes[sides["B"]])
    if not keys:
        raise JobError(f"{folder / WEIGHTS}: holds no matrices; save the adapter anew")
    return PeftAdapter(
        folder=folder,
        config=config,
        lora_ranks=ranks,
        keys={linear: (sides["A"], sides["B"]) for linear, sides in keys.items()},
    )


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); give the folder of a PEFT adapter") from None
    except ValueError as error:
        raise JobError(f"{path}: not readable as JSON ({error}); save the adapter anew") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise JobError(f"{path}: peft_type is {found!r}; give an adapter of type LORA")
    return config


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / CONFIG
    for field, plain in _PLAIN.items():
        if field in config and config[field] not in plain:
            raise JobError(
                f"{path}: {field} is {config[field]!r}; only {plain[0]!r} is understood: use peft for this one"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise JobError(
            f"{path}: init_lora_weights is {start!r}, which changes the base model too; save the adapter with peft's "
            "path_initial_model_for_weight_conversion first"
        )


def _saved_shapes(folder: Path) -> dict[str, list[int]]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise JobError(f"{path}: is not there, and only safetensors are read; save the adapter with peft anew")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise JobError(f"{path}: cannot be read as safetensors ({error}); save the adapter anew") from None


def _lora_rank(folder: Path, config: Mapping[str, Any], linear: str, a: list[int], b: list[int]) -> int:
    r = int(_by_pattern(config.get("rank_pattern"), linear, config.get("r", 8)))
    if len(a) != 2 or len(b) != 2 or a[0] != r or b[1] != r:
        raise JobError(
            f"{folder / WEIGHTS}: {linear} has A {a} and B {b}, where {CONFIG} says r = {r}; save the adapter anew"
        )
    return r


def _by_pattern(patterns: Mapping[str, Any] | None, linear: str, otherwise: Any) -> Any:
    # PEFT's rule: the first pattern that matches the name's end, from a dot on, as a regular expression.
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", linear):
            return value
    return otherwise
