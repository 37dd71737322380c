"""The microbatches of a run as tensors, each packed once, without the samples of adapters that were halted.

Whether a sample is left out follows from how its adapter's steps went alone (StageAdapter.takes_samples), so that all
stages, replicas and resumed runs leave out the same, whatever the cut.
"""

from collections.abc import Sequence

from ..planner.plan import Microbatch, Plan
from ..planner.program import Action, ActionKind
from .adapters import StageAdapter
from .batch import PackedBatch
from .evaluations import Evaluations
from .itinerary import Leg
from .packer import Packer

_PACKED = (ActionKind.FORWARD, ActionKind.EVALUATE)


def packed_before(legs: Sequence[Leg]) -> tuple[Action | None, ...]:
    """For each leg the action whose microbatch is packed before the leg waits for its message.

    Behind a backward that waits, the forward that follows it right away, so that the host packs while it would wait:
    activations are mostly there when a forward begins. Never across a Step, which may halt an adapter. Otherwise the
    leg's own.
    """
    own = [leg.action if leg.action.kind in _PACKED else None for leg in legs]
    following = [*own[1:], None]
    return tuple(
        after if leg.action.kind is ActionKind.BACKWARD and leg.receive is not None else action
        for leg, action, after in zip(legs, own, following, strict=True)
    )


class PackAhead:
    """Packs when first asked, which on a GPU is while a message is on its way (`packed_before`)."""

    def __init__(
        self, plan: Plan, packer: Packer, adapters: Sequence[StageAdapter], *, evaluations: Evaluations | None
    ) -> None:
        self._plan = plan
        self._packer = packer
        self._adapters = adapters
        self._evaluations = evaluations
        self._ready: dict[int, PackedBatch | None] = {}

    def prepare(self, action: Action) -> None:
        """Pack the microbatch of a Forward or Evaluate for `take`, unless that is done."""
        if action.microbatch not in self._ready:
            self._ready[action.microbatch] = self._packed(action)

    def take(self, action: Action) -> PackedBatch | None:
        """It, handed out once; None where nothing is left of a microbatch."""
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
