"""Built-in shapes: config.json of well-known models, without weights or tokenizer, to profile and to benchmark."""

import json
from pathlib import Path
from typing import Any

SHAPES_FOLDER = Path(__file__).parent / "shapes"
"""One file a shape: its config.json, and under `source` where the facts are from."""


def shape_names() -> tuple[str, ...]:
    """Names of all built-in shapes, sorted."""
    return tuple(sorted(path.stem for path in SHAPES_FOLDER.glob("*.json")))


def shape_config(name: str) -> dict[str, Any]:
    """config.json of the built-in shape of that name. Raises KeyError where there is none."""
    if name not in shape_names():
        raise KeyError(name)
    config: dict[str, Any] = json.loads((SHAPES_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    del config["source"]
    return config
