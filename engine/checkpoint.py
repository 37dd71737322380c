"""Checkpoints on disk: a safetensors file per worker, complete when all are there; keyed by adapter and layer.

`checkpoints/microbatch-N/stage-S-of-P.safetensors` holds, for each adapter of the plan, the tensors of
StageAdapter.tensors under `ADAPTER/`, `loss/ADAPTER.BATCH` and `total/ADAPTER.BATCH` (norms that wait for their step),
and as metadata the versions, the base model's identity and the position: which samples are done. Any plan of the same
jobs that comes to the same position can go on from there, on any number of stages and replicas. With R replicas N is a
slot, and the parts of the others, `stage-S-of-P.replica-Q-of-R.safetensors`, hold only their share of batches in the
making.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..planner.errors import PlanError
from ..planner.plan import Plan
from ..planner.position import positions
from ..planner.program import Program
from ..planner.resume import remaining
from .adapters import StageAdapter
from .cut import Copy
from .disk import settle, writing
from .itinerary import Batch
from .mailbox import Sums
from .output import CHECKPOINTS

_KEPT = 2
_FOLDER = re.compile(r"microbatch-(\d+)")
_PART = re.compile(r"stage-(\d+)-of-(\d+)(?:\.replica-(\d+)-of-(\d+))?\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A whole checkpoint, of all workers."""

    after: int
    """The slot of the plan at hand that it is cut behind."""
    versions: tuple[int, ...]
    """Steps that each adapter has behind it."""
    tensors: Mapping[str, Tensor]
    """Of all stages; those of replica 0."""
    shares: tuple[Mapping[str, Tensor], ...]
    """By replica, what it had of batches in the making: `ADAPTER/grad/NAME` and `loss/ADAPTER.BATCH`."""

    def put_into(self, adapters: Sequence[StageAdapter], *, replica: int = 0, num_replicas: int = 1) -> None:
        """Give the adapters of a stage their state."""
        tensors = {**self.tensors, **self._share(replica, num_replicas)}
        for index, (adapter, version) in enumerate(zip(adapters, self.versions, strict=True)):
            own = {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{index}/")}
            adapter.load(own, version=version)

    def rest_of(self, program: Program) -> Program:
        """What is left to do."""
        return remaining(program, slot=self.after, versions=self.versions, pending=_by_batch("total", self.tensors))

    def sums(self, *, replica: int = 0, num_replicas: int = 1) -> Sums:
        """Losses of batches in the making and norms of those that wait for their step."""
        tensors = {**self.tensors, **self._share(replica, num_replicas)}
        return Sums(losses=_by_batch("loss", tensors), totals=_by_batch("total", tensors))

    def _share(self, replica: int, num_replicas: int) -> Mapping[str, Tensor]:
        if len(self.shares) == num_replicas:
            return self.shares[replica]
        # The replicas are others now: the first takes over what all had.
        summed: dict[str, Tensor] = {}
        for share in self.shares if replica == 0 else ():
            for key, value in share.items():
                summed[key] = summed[key] + value if key in summed else value
        return summed


class CheckpointWriter:
    """Collects one worker's copies for each cut and writes the part when it has them all.

    `positions` are those of the plan (planner/position.py), by slot; `base` says what is trained on (base_identity.py).
    """

    def __init__(
        self,
        folder: Path,
        *,
        stage: int,
        num_stages: int,
        positions: Sequence[str],
        base: str = "",
        replica: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self._folder = folder / CHECKPOINTS
        self._stage = stage
        self._num_stages = num_stages
        self._replica = replica
        self._num_replicas = num_replicas
        self._positions = positions
        self._base = base
        self._tensors: dict[int, dict[str, Tensor]] = {}
        self._versions: dict[int, dict[int, int]] = {}

    def copy(self, due: Sequence[Copy], adapters: Sequence[StageAdapter], sums: Sums) -> None:
        """Take the copies that are due now, and write what they complete."""
        for copy in due:
            tensors = self._tensors.setdefault(copy.after, {})
            adapter = adapters[copy.adapter]
            self._versions.setdefault(copy.after, {})[copy.adapter] = adapter.version
            for name, tensor in adapter.tensors().items():
                if self._belongs(name, copy):
                    tensors[f"{copy.adapter}/{name}"] = tensor
            tensors |= self._sums(copy, adapter, sums)
            if copy.completes:
                self._write(copy.after)

    def _belongs(self, name: str, copy: Copy) -> bool:
        kind, _, rest = name.partition("/")
        if kind == "closed":
            return self._replica == 0 and int(rest.partition("/")[0]) < copy.num_whole
        if kind == "evaluated":
            # The last stage's books. Others have, from the checkpoint they resumed from, what they were then.
            return self._replica == 0 and self._stage == self._num_stages - 1
        return self._replica == 0 or kind == "grad"

    def _sums(self, copy: Copy, adapter: StageAdapter, sums: Sums) -> dict[str, Tensor]:
        found = {}
        for owner, batch in sums.losses if self._stage == self._num_stages - 1 else ():
            whole = batch < copy.num_whole
            # What others have reduced already is none of ours; whole losses are the same everywhere.
            early = not whole and batch in adapter.closed
            if owner == copy.adapter and not early and (self._replica == 0 or not whole):
                found[f"loss/{owner}.{batch}"] = sums.losses[owner, batch].clone()
        # On stage 0 every total is that of all stages; on others it may be a share under way.
        for owner, batch in sums.totals if self._stage == 0 and self._replica == 0 else ():
            if owner == copy.adapter and batch < copy.num_whole:
                found[f"total/{owner}.{batch}"] = sums.totals[owner, batch].clone()
        return found

    def _write(self, after: int) -> None:
        versions = self._versions.pop(after)
        metadata = {
            "position": self._positions[after],
            "base": self._base,
            "versions": json.dumps([versions[index] for index in range(len(versions))]),
        }
        folder = self._folder / f"microbatch-{after}"
        share = f".replica-{self._replica}-of-{self._num_replicas}" if self._num_replicas > 1 else ""
        path = folder / f"stage-{self._stage}-of-{self._num_stages}{share}.safetensors"
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        tensors = {key: tensor.contiguous() for key, tensor in self._tensors.pop(after).items()}
        try:
            with writing(path):
                folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, unfinished, metadata=metadata)
                # An older one is let go once all parts of this are there.
                settle(unfinished)
                os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        # Every worker tidies up: whoever writes the last part of a checkpoint makes an older one superfluous.
        for older in _complete(self._folder)[:-_KEPT]:
            shutil.rmtree(self._folder / f"microbatch-{older}", ignore_errors=True)


def forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of an earlier run."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def forget_unfinished(folder: Path) -> None:
    """Remove checkpoints of which parts are missing: those of a run cut otherwise would never complete them."""
    whole = {f"microbatch-{after}" for after in _complete(folder / CHECKPOINTS)}
    for path in (folder / CHECKPOINTS).glob("microbatch-*"):
        if path.name not in whole:
            shutil.rmtree(path, ignore_errors=True)


def newest_whole(folder: Path) -> Path | None:
    """The newest complete checkpoint's own folder below an output folder; None where there is none."""
    complete = _complete(folder / CHECKPOINTS)
    return folder / CHECKPOINTS / f"microbatch-{complete[-1]}" if complete else None


def newest_position(folder: Path, plan: Plan, *, base: str = "") -> int | None:
    """The slot of the plan behind which the newest complete checkpoint is cut; None where there is none.

    Raises PlanError as `newest_checkpoint` does.
    """
    path = newest_whole(folder)
    return None if path is None else _slot(_metadata(_parts(path)[0]), plan, path, base=base)


def newest_checkpoint(folder: Path, plan: Plan, *, base: str = "") -> Restored | None:
    """The newest complete checkpoint below an output folder; None where there is none.

    Raises PlanError where the plan never comes to its position, where it was trained on another base model than `base`
    says (where it says anything), and where it cannot be read.
    """
    path = newest_whole(folder)
    if path is None:
        return None
    parts = _parts(path)
    metadata = _metadata(parts[0])
    tensors: dict[str, Tensor] = {}
    shares: dict[int, dict[str, Tensor]] = {}
    for part in parts:
        replica = _replica(part)
        found = _read(part)
        if replica == 0:
            tensors |= found
        shares.setdefault(replica, {}).update(found)
    whole = _by_batch("total", tensors)
    return Restored(
        after=_slot(metadata, plan, path, base=base),
        versions=tuple(json.loads(metadata["versions"])),
        tensors={key: value for key, value in tensors.items() if not _is_share(key, whole)},
        shares=tuple(
            {key: value for key, value in shares[replica].items() if _is_share(key, whole)}
            for replica in sorted(shares)
        ),
    )


def _is_share(key: str, whole: Collection[Batch]) -> bool:
    # Whether it belongs to a batch in the making.
    kind, _, rest = key.partition("/")
    if kind == "loss":
        return _batch(rest) not in whole
    return rest.startswith("grad/")


def _by_batch(kind: str, tensors: Mapping[str, Tensor]) -> dict[Batch, Tensor]:
    return {_batch(key.partition("/")[2]): value for key, value in tensors.items() if key.startswith(f"{kind}/")}


def _batch(text: str) -> Batch:
    adapter, global_batch = text.split(".")
    return int(adapter), int(global_batch)


def _slot(metadata: Mapping[str, str], plan: Plan, path: Path, *, base: str) -> int:
    known, trained_on = positions(plan), metadata.get("base")
    if base and trained_on and trained_on != base:
        raise PlanError(f"{path} was trained on another base_model; give that one, or train without --resume")
    if metadata.get("position") not in known:
        raise PlanError(f"{path} is of another plan; give that plan, or train without --resume")
    return known.index(metadata["position"])


def _parts(path: Path) -> list[Path]:
    return sorted(path.glob("stage-*.safetensors"))


def _replica(part: Path) -> int:
    found = _PART.fullmatch(part.name)
    return int(found[3] or 0) if found else 0


def _metadata(part: Path) -> dict[str, str]:
    with _opened(part) as file:
        return dict(file.metadata() or {})


def _read(part: Path) -> dict[str, Tensor]:
    with _opened(part) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _opened(part: Path) -> Any:
    try:
        return safe_open(part, framework="pt")
    except SafetensorError as error:
        raise PlanError(f"{part} cannot be read ({error}); remove {part.parent} to resume from an older one") from None


def _complete(folder: Path) -> list[int]:
    # Checkpoints of which every worker's part is there, oldest first.
    found = []
    for path in folder.glob("microbatch-*"):
        name = _FOLDER.fullmatch(path.name)
        parts = [part for part in map(_PART.fullmatch, _file_names(path)) if part]
        counts = {int(part[2]) * int(part[4] or 1) for part in parts}
        if name and len(counts) == 1 and len(parts) == next(iter(counts)):
            found.append(int(name[1]))
    return sorted(found)


def _file_names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        # Another worker has tidied it away.
        return []
