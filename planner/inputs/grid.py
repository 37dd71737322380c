"""A sweep in one entry: `grid` becomes one adapter per combination of its values."""

from itertools import product
from typing import Any

from .jobfile import AdapterEntry, Grid

_SHORT = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora_",
    "global_batch_size": "batch",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "learning_rate": "lr",
    "lr_scheduler": "",
    "warmup_ratio": "warmup",
    "weight_decay": "decay",
    "max_grad_norm": "clip",
    "seed": "seed",
}


def expand(entry: AdapterEntry) -> tuple[AdapterEntry, ...]:
    """The adapters that an entry stands for, in the order of the schema's fields, the last field running fastest.

    Names tell the values apart: `maths` with r [8] and learning_rate [1e-4, 2e-4] becomes `maths-r8-lr0.0001` and
    `maths-r8-lr0.0002`. An entry without grid stands for itself.
    """
    axes = [(name, getattr(entry.grid, name)) for name in Grid.model_fields if name in entry.grid.model_fields_set]
    return tuple(
        entry.model_copy(
            update={
                **dict(zip((name for name, _ in axes), values, strict=True)),
                "name": "-".join(
                    [entry.name, *(_label(axis[0], value) for axis, value in zip(axes, values, strict=True))]
                ),
                "grid": Grid(),
            }
        )
        for values in product(*(values for _, values in axes))
    )


def _label(field: str, value: Any) -> str:
    if value is None:
        return f"{_SHORT[field]}_none"
    return f"{_SHORT[field]}{str(value).lower().replace('+', '')}"
