"""MemoryCosts of a GPU from what its allocator was seen to hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..traces.costs import MemoryCosts
from ..traces.fit import Float, nonnegative
from .device_memory import DeviceBytes
from .measure_points import Measured
from .stage_kinds import StaticBytes


def memory_costs(measured: Measured, *, device: DeviceBytes, boundary_bytes_per_token: float) -> MemoryCosts:
    """What stages hold, by layers and tokens. Every part is a least-squares fit that no measured part is below zero in.

    `boundary_bytes_per_token`: a stage's input, which is there before its forward begins. Of full recomputation that is
    taken as it is, and not from rows: of the input of every layer but the first, which is the stage's own, a stage of
    two layers shows one beside all that does not grow with layers.
    """
    table = measured.table.dropna(subset=["kept_bytes"])
    forward, backward = (table[table["pass"] == name] for name in ("forward", "backward"))
    plain = forward[(forward["piece"] == "stage") & (forward["recompute"] == "none")]
    layer, beside = _per_token(plain)
    static = _by_depth(measured.static)
    return MemoryCosts(
        layer_weight_bytes=static.layer_weight_bytes,
        embedding_weight_bytes=_surplus_weight(measured.static, "first"),
        head_weight_bytes=_surplus_weight(measured.static, "last"),
        adapter_bytes_per_layer=static.adapter_bytes_per_layer,
        adapter_gradient_bytes_per_layer=4 * static.parameters_per_layer,
        adapter_parameters_per_layer=static.parameters_per_layer,
        activation_bytes_per_token_layer=layer,
        selective_bytes_per_token_layer=_kept(forward, "selective", beside),
        stage_bytes_per_token=beside + boundary_bytes_per_token,
        boundary_bytes_per_token=boundary_bytes_per_token,
        workspace_bytes_per_token=max(_passing(plain), _passing(_plain(backward))),
        logit_bytes_per_target=_per_target(forward),
        head_workspace_bytes=float(forward.loc[forward["piece"] == "last", "passing_bytes"].max()),
        graph_tokens=measured.graph_tokens(),
        overhead_bytes=float(device.context),
        capacity_bytes=float(device.total),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Static:
    layer_weight_bytes: float
    adapter_bytes_per_layer: float
    parameters_per_layer: float


def _by_depth(static: Sequence[StaticBytes]) -> _Static:
    # From the shallowest to the deepest stage of the middle.
    middle = [held for held in static if held.kind.piece == "stage" and held.kind.recompute == "none"]
    low, high = (choose(middle, key=lambda held: held.kind.layers) for choose in (min, max))
    more = high.kind.layers - low.kind.layers
    weights, held = high.weight_bytes - low.weight_bytes, high.held_bytes - low.held_bytes
    if not more:
        more, weights, held = low.kind.layers, low.weight_bytes, low.held_bytes
    return _Static(
        layer_weight_bytes=weights / more,
        adapter_bytes_per_layer=max(0.0, held - weights) / more / high.num_adapters,
        parameters_per_layer=high.adapter_parameters / high.kind.layers / high.num_adapters,
    )


def _surplus_weight(static: Sequence[StaticBytes], piece: str) -> float:
    end = next(held for held in static if held.kind.piece == piece)
    plain = next(held for held in static if held.kind.piece == "stage" and held.kind.layers == end.kind.layers)
    return float(end.weight_bytes - plain.weight_bytes)


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["piece"] == "stage") & (rows["recompute"] == "none")]


def _per_token(rows: pd.DataFrame) -> tuple[float, float]:
    # (of each layer, beside the layers)
    tokens, layers, kept = (rows[name].to_numpy(dtype=np.float64) for name in ("tokens", "layers", "kept_bytes"))
    found = nonnegative(np.stack([layers, np.ones_like(layers)], axis=1), kept / tokens)
    return float(found[0]), float(found[1])


def _kept(forward: pd.DataFrame, recompute: str, beside: float) -> float:
    rows = forward[(forward["piece"] == "stage") & (forward["recompute"] == recompute)]
    if rows.empty:
        return 0.0
    return max(0.0, float(((rows["kept_bytes"] / rows["tokens"] - beside) / rows["layers"]).mean()))


def _passing(rows: pd.DataFrame) -> float:
    return _slope(rows["tokens"].to_numpy(dtype=np.float64), rows["passing_bytes"].to_numpy(dtype=np.float64))


def _per_target(forward: pd.DataFrame) -> float:
    plain = _plain(forward)[["condition", "layers", "kept_bytes"]]
    both = forward[forward["piece"] == "last"].merge(plain, on=["condition", "layers"], suffixes=("", "_plain"))
    more = (both["kept_bytes"] - both["kept_bytes_plain"]).to_numpy(dtype=np.float64)
    return _slope(both["targets"].to_numpy(dtype=np.float64), more)


def _slope(counts: Float, num_bytes: Float) -> float:
    # Through the origin, by weight of the large ones, which decide whether something fits.
    return max(0.0, float((counts * num_bytes).sum() / (counts**2).sum()))
