"""What planning must know of a base model: its folder, its layers and the names of its linears. Never its weights."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ..errors import JobError
from .built_in_shapes import shape_config, shape_names
from .hub import SMALL_FILES, hub_folder
from .tiny_tokenizer import tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TINY: Final = "tiny"
"""The `base_model` that names the embedded model."""

TINY_CONFIG: Final = MappingProxyType(
    {
        "model_type": "llama",
        "architectures": ("LlamaForCausalLM",),
        "vocab_size": 262,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "tie_word_embeddings": False,
    }
)
"""config.json of the embedded model. The engine builds it with random weights; planning only counts its layers."""

_LLAMA_LINEARS: Final = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
LINEARS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA_LINEARS)
)
"""Linears of a decoder layer, by `model_type`, in the order in which a layer runs them."""

_UNDERSTOOD: Final = MappingProxyType({"hidden_act": ("silu",), "attention_dropout": (0, None)})
"""What decoder layers are built as, where a config.json says otherwise: our forward would silently compute another."""

ALL_LINEAR: Final = "all-linear"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model as planning sees it."""

    name: str
    """As the job file gives it."""
    folder: Path | None
    """Where its files lie; None for the embedded model, a built-in shape and a config.json without anything beside."""
    family: str
    """The `model_type` of its config.json."""
    num_layers: int
    max_tokens: int
    """Positions it was made for."""
    on_hub: bool = field(default=False, compare=False)
    """Named by a hub id; its folder lies in the hub's cache and may hold no weights yet."""
    random_weights: bool = False
    """Drawn from a seed where the model runs, in place of the weights of its folder."""
    load_in_4bit: bool = False
    """Linears of decoder layers are held as NF4."""
    double_quant: bool = False
    """The maxima of NF4's blocks are rounded too."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Its whole config.json."""

    def is_in_4bit(self) -> bool:
        """Whether it runs in 4 bits: because that is asked, or because its checkpoint is in 4 bits already."""
        stored = self.config.get("quantization_config")
        return self.load_in_4bit or (isinstance(stored, Mapping) and bool(stored.get("load_in_4bit")))

    def targets(self, names: Sequence[str]) -> tuple[str, ...]:
        """Short names of the linears that `target_modules` names, in the layer's order.

        PEFT's rule: a linear is meant by its name or by the end of it after a dot. Raises JobError naming what matches
        nothing.
        """
        linears = LINEARS[self.family]
        short = tuple(linear.rpartition(".")[2] for linear in linears)
        if tuple(names) == (ALL_LINEAR,):
            return short
        unknown = [name for name in names if not any(_meant(linear, name) for linear in linears)]
        if unknown:
            raise JobError(
                f"{', '.join(unknown)} matches no linear of {self.name} ({self.family}); it has {', '.join(short)}, "
                f"or say {ALL_LINEAR}"
            )
        return tuple(
            end for end, linear in zip(short, linears, strict=True) if any(_meant(linear, name) for name in names)
        )


def _meant(linear: str, name: str) -> bool:
    return linear == name or linear.endswith(f".{name}")


def find_base_model(
    name: str,
    *,
    relative_to: Path,
    random_weights: bool = False,
    num_layers: int | None = None,
    load_in_4bit: bool = False,
) -> BaseModel:
    """The base model of that name: the embedded one, a folder, a config.json, a built-in shape, or a hub id.

    Of a model on the Hugging Face hub only the small files are read. `num_layers` replaces the model's own number, for
    random weights only. Raises JobError when it is nowhere or of a family that cannot be trained.
    """
    found = replace(_found(name, relative_to=relative_to, random_weights=random_weights), load_in_4bit=load_in_4bit)
    if num_layers is None:
        return found
    if not random_weights:
        raise JobError(f"num_layers={num_layers} goes with random weights only; set random_weights or leave it out")
    return replace(found, num_layers=num_layers, config={**found.config, "num_hidden_layers": num_layers})


def _found(name: str, *, relative_to: Path, random_weights: bool) -> BaseModel:
    path = relative_to / Path(name).expanduser()
    folder: Path | None = None
    if name == TINY:
        config: Any = TINY_CONFIG
    elif path.is_dir():
        folder, config = path, _read_config(path / "config.json")
    elif path.suffix == ".json" and path.is_file():
        config = _read_config(path)
    elif name in shape_names():
        config = shape_config(name)
    else:
        folder = _from_hub(name, relative_to=relative_to)
        described = _described(name, folder, _read_config(folder / "config.json"), random_weights=random_weights)
        return replace(described, on_hub=True)
    return _described(name, folder, config, random_weights=random_weights)


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); give the folder of a transformers model") from error
    except ValueError as error:
        raise JobError(f"{path}: not readable as JSON ({error}); download the model again") from error


def load_tokenizer(model: BaseModel) -> "PreTrainedTokenizerFast":
    """The tokenizer of a base model. Imports transformers, but not torch. Raises JobError naming the folder."""
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise JobError(
            "reading texts needs transformers and tokenizers, which are not installed; "
            "get them with `pip install 'loraplex[train]'`"
        ) from error
    if model.name == TINY:
        return tiny_tokenizer()
    if model.folder is None:
        raise JobError(f"{model.name!r} is a shape without a tokenizer; give a model folder, or data of type lengths")
    if not (model.folder / "tokenizer.json").is_file():
        raise JobError(f"{model.folder}: has no tokenizer.json; save its fast tokenizer there")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(model.folder)
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files it cannot make sense of.
        raise JobError(f"{model.folder}: its tokenizer cannot be loaded ({error}); save it again") from error
    return tokenizer


def _from_hub(name: str, *, relative_to: Path) -> Path:
    if not _HUB_ID.fullmatch(name):
        shapes = ", ".join(shape_names())
        raise JobError(
            f"{name!r} is no folder below {relative_to}, no hub id and not {TINY!r}; mend it, or name a shape: {shapes}"
        )
    try:
        return hub_folder(name, patterns=SMALL_FILES, is_complete=_has_small_files)
    except JobError as error:
        raise JobError(f"{name!r} is no folder below {relative_to}; as a hub id: {error}") from error


def _has_small_files(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()


def _described(name: str, folder: Path | None, config: Any, *, random_weights: bool) -> BaseModel:
    if not isinstance(config, Mapping):
        raise JobError(f"the config.json of {name!r} is no list of settings; download the model again")
    family = str(config.get("model_type"))
    if family not in LINEARS:
        raise JobError(f"{name!r} is of the family {family!r}; trained are {', '.join(LINEARS)}")
    needed = ("num_hidden_layers", "max_position_embeddings")
    for number in (*needed, "vocab_size") if random_weights else needed:
        found = config.get(number)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise JobError(
                f"the config.json of {name!r} has {number}={found!r}, which must be a whole number above 0; download "
                "the model again"
            )
    _check_layers(name, config)
    return BaseModel(
        name=name,
        folder=folder,
        family=family,
        num_layers=config["num_hidden_layers"],
        max_tokens=config["max_position_embeddings"],
        random_weights=random_weights,
        config=config,
    )


def _check_layers(name: str, config: Mapping[str, Any]) -> None:
    for setting, understood in _UNDERSTOOD.items():
        found = config.get(setting, understood[0])
        if found not in understood:
            raise JobError(
                f"the config.json of {name!r} has {setting}={found!r}, where only {understood[0]!r} is trained; give "
                "another model"
            )
