"""The microbatches of a run as tensors, each packed once, without the samples of adapters that were halted.

Whether a sample is left out follows from how its adapter's steps went alone (StageAdapter.takes_samples), so that all
stages, replicas and resumed runs leave out the same, whatever the cut.
"""

from collections.abc import Sequence

from ..planner.plan import Microbatch, Plan
from ..planner.program import Action, ActionKind
from .adapters import StageAdapter
from .batch import PackedBatch, Packer
from .evaluations import Evaluations


class PackAhead:
    """Packs when first asked, which on a GPU is while the microbatch's message is on its way."""

    def __init__(
        self, plan: Plan, packer: Packer, adapters: Sequence[StageAdapter], *, evaluations: Evaluations | None
    ) -> None:
        self._plan = plan
        self._packer = packer
        self._adapters = adapters
        self._evaluations = evaluations
        self._ready: dict[int, PackedBatch | None] = {}

    def prepare(self, action: Action) -> None:
        """Pack the microbatch of a Forward or Evaluate for `take`."""
        self._ready[action.microbatch] = self._packed(action)

    def take(self, action: Action) -> PackedBatch | None:
        """It, handed out once; None where nothing is left of a microbatch."""
        if action.microbatch not in self._ready:
            self.prepare(action)
        return self._ready.pop(action.microbatch)

    def _packed(self, action: Action) -> PackedBatch | None:
        microbatch, looks = self._plan.microbatches[action.microbatch], self._evaluations
        packer = self._packer if looks is None or not looks.covers(action.microbatch) else looks.packer
        if action.kind is ActionKind.EVALUATE and packer is self._packer:
            # Before and after training all are looked at, halted or not.
            return packer.pack(microbatch)
        going = {adapter for adapter, _ in microbatch.global_batches() if self._adapters[adapter].takes_samples()}
        samples = tuple(sample for sample in microbatch.samples if sample.adapter in going)
        return packer.pack(Microbatch(samples=samples)) if samples else None
