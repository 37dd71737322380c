"""Ranks the adapters of a run that learned from the same data, as those of a grid do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.jobs import Job
from ..traces.ranking import RankedAdapter, Ranking
from ..traces.run_folder import metrics_name
from .evaluation_records import read_evaluations
from .metrics import read_metrics, steps_kept
from .output import evaluations_name, read_validation

_RENAMED = {"eps": "adam_epsilon"}


def make_rankings(loaded: LoadedJobs, folder: Path) -> tuple[Ranking, ...]:
    """A ranking for each data set that several adapters learned from, once the run's losses lie in `folder`.

    By the lowest validation loss during training and after it where samples were kept out, else by the last training
    loss. Raises JobError where metrics cannot be read.
    """
    families: dict[int, list[int]] = {}
    for index, table in enumerate(loaded.tables):
        families.setdefault(id(table), []).append(index)
    after = {name: losses.get("after", math.nan) for name, losses in read_validation(folder).items()}
    return tuple(_ranking(loaded, members, folder, after=after) for members in families.values() if len(members) > 1)


def _ranking(loaded: LoadedJobs, members: Sequence[int], folder: Path, *, after: Mapping[str, float]) -> Ranking:
    settings = _differing([_settings(loaded.jobs[index]) for index in members])
    kept_out = [tuple(loaded.orders[index].validation_rows.tolist()) for index in members]
    validated = all(kept_out)
    rows = []
    for index, own in zip(members, settings, strict=True):
        name = loaded.jobs[index].name
        records = read_metrics(folder / metrics_name(name))
        looks = [(records[-1].loss, records[-1].step)]
        if validated:
            looks = [(look.loss, look.step) for look in read_evaluations(folder / evaluations_name(name))]
            looks.append((after.get(name, math.nan), steps_kept(records)))
        # A loss that is no number is beaten by any.
        loss, step = min(looks, key=lambda look: (math.isnan(look[0]), look[0]))
        rows.append(RankedAdapter(name=name, loss=loss, step=step, settings=own))
    rows.sort(key=lambda row: (math.isnan(row.loss), row.loss))
    note = "each keeps out other samples, since their seeds or val_split differ" if len(set(kept_out)) > 1 else ""
    return Ranking(
        by="validation loss" if validated else "training loss",
        note=note if validated else "",
        adapters=tuple(rows),
    )


def _settings(job: Job) -> dict[str, Any]:
    # By the job file's names, as far as a grid can vary them and a plan knows them.
    found = asdict(job.lora) | asdict(job.optimizer)
    found["adam_beta1"], found["adam_beta2"] = found.pop("betas")
    found = {_RENAMED.get(name, name): value for name, value in found.items()}
    sizes = [len(batch) for batch in job.global_batches]
    return found | {"global_batch_size": max(sizes), "steps": len(sizes), "seed": job.seed}


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = [name for name in settings[0] if len({repr(one[name]) for one in settings}) > 1]
    return [{name: one[name] for name in names} for one in settings]
