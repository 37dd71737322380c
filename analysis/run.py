"""A run's folder, read back: what simulate, train and demo left (traces/run_folder.py names the files)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..traces.errors import TraceError
from ..traces.ranking import Ranking, load_rankings
from ..traces.run_folder import COMMAND, MEASURED, PLAN, RANKING, SIMULATED, SUMMARY, metrics_files
from ..traces.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What a folder holds; what it does not hold is None or empty."""

    name: str
    plan: Plan | None
    simulated: Timeline | None
    measured: Timeline | None
    losses: dict[str, pd.DataFrame]
    """By adapter, in the plan's order: the columns of its metrics file, `step` and `loss` among them."""
    commands: tuple[str, ...]
    rankings: tuple[Ranking, ...]
    """Of adapters that learned from the same data."""
    facts: Mapping[str, Any]
    """summary.json: what was printed with --json; the profile, systems and adapters' times alone are read from it."""

    def alone_ms(self) -> dict[str, float]:
        """Makespan of each adapter alone, where summary.json knows it."""
        adapters = self.facts.get("adapters") or ()
        return {adapter["name"]: adapter["alone_ms"] for adapter in adapters if adapter.get("alone_ms")}

    def last_steps(self) -> dict[str, int]:
        """Of each adapter that trained here, its last step: the one that halted it, if one did."""
        return {name: int(table["step"].max()) for name, table in self.losses.items() if len(table)}

    def timelines(self) -> tuple[Timeline, ...]:
        """Those that are there, the simulated one first."""
        return tuple(timeline for timeline in (self.simulated, self.measured) if timeline is not None)

    def both(self) -> tuple[Timeline, Timeline]:
        """The simulated and the measured timeline. Raises TraceError naming the one that is missing."""
        if self.simulated is None or self.measured is None:
            missing = SIMULATED if self.simulated is None else MEASURED
            raise TraceError(f"{self.name}: holds no {missing}; simulate and train into the same folder first")
        return self.simulated, self.measured


def load_run(folder: Path | str) -> Run:
    """Read a run's folder. Raises TraceError where it is none or holds no timeline, and where a file is bad."""
    place = Path(folder)
    if not place.is_dir():
        raise TraceError(f"{place}: is no folder; give one that loraplex simulate, train or demo wrote")
    plan, simulated, measured = (place / name for name in (PLAN, SIMULATED, MEASURED))
    if not simulated.exists() and not measured.exists():
        raise TraceError(f"{place}: holds neither {SIMULATED} nor {MEASURED}; simulate or train into it first")
    commands = place / COMMAND
    jobs = load_plan(plan) if plan.exists() else None
    metrics = metrics_files(place)
    # In the plan's order, so that an adapter has one colour in all pictures.
    names = [job.name for job in jobs.jobs if job.name in metrics] if jobs is not None else []
    return Run(
        name=place.resolve().name,
        plan=jobs,
        simulated=Timeline.load(simulated) if simulated.exists() else None,
        measured=Timeline.load(measured) if measured.exists() else None,
        losses={adapter: read_losses(metrics[adapter]) for adapter in dict.fromkeys([*names, *metrics])},
        rankings=load_rankings(place / RANKING),
        facts=_read_object(place / SUMMARY) if (place / SUMMARY).exists() else {},
        commands=tuple(commands.read_text(encoding="utf-8").splitlines()) if commands.exists() else (),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(f"{path}: is no JSON ({error}); delete it or run the command again") from error
    if not isinstance(content, dict):
        raise TraceError(f"{path}: must hold one object; delete it or run the command again")
    return content


def read_losses(path: Path) -> pd.DataFrame:
    """The lines of a metrics file as a table. Raises TraceError naming file and line where step or loss is missing."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{path}, line {number}: is no JSON ({error}); delete the broken line") from error
        if isinstance(row, dict) and "loss" in row and row["loss"] is None:
            # How a loss that was no finite number is written.
            row["loss"] = math.nan
        if not isinstance(row, dict) or not all(isinstance(row.get(name), int | float) for name in ("step", "loss")):
            raise TraceError(f"{path}, line {number}: needs the numbers 'step' and 'loss'")
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["step", "loss"])
