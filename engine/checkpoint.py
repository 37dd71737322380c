"""Checkpoints on disk: a safetensors file per stage, complete when all are there; keyed by adapter and layer.

`checkpoints/microbatch-N/stage-S-of-P.safetensors` holds, for each adapter of the plan, the tensors of
StageAdapter.tensors under `ADAPTER/`, `loss/ADAPTER.BATCH` and `total/ADAPTER.BATCH` (norms that wait for their step),
and as metadata the versions and the plan's fingerprint.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..planner.errors import PlanError
from ..planner.program import Program
from ..planner.resume import remaining
from .adapters import StageAdapter
from .cut import Copy
from .itinerary import Batch
from .mailbox import Sums
from .output import CHECKPOINTS

_KEPT = 2
_FOLDER = re.compile(r"microbatch-(\d+)")
_PART = re.compile(r"stage-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A whole checkpoint, of all stages."""

    after: int
    """The microbatch it is cut behind."""
    versions: tuple[int, ...]
    """Steps each adapter has taken."""
    tensors: Mapping[str, Tensor]

    def put_into(self, adapters: Sequence[StageAdapter]) -> None:
        """Give the adapters of a stage their state."""
        for index, (adapter, version) in enumerate(zip(adapters, self.versions, strict=True)):
            own = {key.partition("/")[2]: value for key, value in self.tensors.items() if key.startswith(f"{index}/")}
            adapter.load(own, version=version)

    def rest_of(self, program: Program) -> Program:
        """What is left to do."""
        return remaining(program, slot=self.after, versions=self.versions, pending=self._by_batch("total"))

    def sums(self) -> Sums:
        """Losses of batches in the making and norms of those that wait for their step."""
        return Sums(losses=self._by_batch("loss"), totals=self._by_batch("total"))

    def _by_batch(self, kind: str) -> dict[Batch, Tensor]:
        found = {}
        for key, value in self.tensors.items():
            if key.startswith(f"{kind}/"):
                adapter, global_batch = key.partition("/")[2].split(".")
                found[int(adapter), int(global_batch)] = value
        return found


class CheckpointWriter:
    """Collects one stage's copies for each cut and writes the part when it has them all."""

    def __init__(self, folder: Path, *, stage: int, num_stages: int, plan_fingerprint: str) -> None:
        self._folder = folder / CHECKPOINTS
        self._stage = stage
        self._num_stages = num_stages
        self._plan_fingerprint = plan_fingerprint
        self._tensors: dict[int, dict[str, Tensor]] = {}
        self._versions: dict[int, dict[int, int]] = {}

    def copy(self, due: Sequence[Copy], adapters: Sequence[StageAdapter], sums: Sums) -> None:
        """Take the copies that are due now, and write what they complete."""
        for copy in due:
            tensors = self._tensors.setdefault(copy.after, {})
            index = copy.adapter
            self._versions.setdefault(copy.after, {})[index] = adapters[index].version
            tensors |= {f"{index}/{name}": tensor for name, tensor in adapters[index].tensors().items()}
            kinds = [("loss", sums.losses)] if self._stage == self._num_stages - 1 else []
            # On stage 0 every total is that of all stages; on others it may be a share under way.
            kinds += [("total", sums.totals)] if self._stage == 0 else []
            for kind, values in kinds:
                tensors |= {f"{kind}/{a}.{k}": value.clone() for (a, k), value in values.items() if a == index}
            if copy.completes:
                self._write(copy.after)

    def _write(self, after: int) -> None:
        versions = self._versions.pop(after)
        metadata = {
            "plan": self._plan_fingerprint,
            "versions": json.dumps([versions[index] for index in range(len(versions))]),
        }
        folder = self._folder / f"microbatch-{after}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"stage-{self._stage}-of-{self._num_stages}.safetensors"
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        tensors = {key: tensor.contiguous() for key, tensor in self._tensors.pop(after).items()}
        save_file(tensors, unfinished, metadata=metadata)
        os.replace(unfinished, path)
        # Every stage tidies up: whoever writes the last part of a checkpoint makes an older one superfluous.
        for older in _complete(self._folder)[:-_KEPT]:
            shutil.rmtree(self._folder / f"microbatch-{older}", ignore_errors=True)


def forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of an earlier run."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def newest_checkpoint(folder: Path, *, plan_fingerprint: str) -> Restored | None:
    """The newest complete checkpoint below an output folder; None where there is none.

    Raises PlanError when it is of another plan or cannot be read.
    """
    complete = _complete(folder / CHECKPOINTS)
    if not complete:
        return None
    path = folder / CHECKPOINTS / f"microbatch-{complete[-1]}"
    tensors: dict[str, Tensor] = {}
    versions: tuple[int, ...] = ()
    for part in sorted(path.glob("stage-*.safetensors")):
        try:
            with safe_open(part, framework="pt") as file:
                metadata = file.metadata()
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise PlanError(f"{part} cannot be read ({error}); remove {path} to resume from an older one") from None
        if metadata["plan"] != plan_fingerprint:
            raise PlanError(f"{part} is of another plan; give that plan, or train without --resume")
        versions = tuple(json.loads(metadata["versions"]))
    return Restored(after=complete[-1], versions=versions, tensors=tensors)


def _complete(folder: Path) -> list[int]:
    # Checkpoints of which every stage's part is there, oldest first.
    found = []
    for path in folder.glob("microbatch-*"):
        name = _FOLDER.fullmatch(path.name)
        parts = [_PART.fullmatch(part.name) for part in path.glob("stage-*.safetensors")]
        counts = {int(part[2]) for part in parts if part}
        if name and len(counts) == 1 and len(parts) == next(iter(counts)):
            found.append(int(name[1]))
    return sorted(found)
