"""Validation losses during training: which one was the best, and when an adapter has had enough, decided on the device.

The last stage knows the loss. Its verdict travels with the gradient norm of the adapter's next batch, so that every
stage hears it at the next Step, before which the weights are still those that were evaluated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..planner.jobs import EvaluationSettings
from .adapters import StageAdapter
from .evaluation_records import EvaluationRecord
from .figures import Figures
from .interleave import Evaluation, is_due
from .itinerary import Batch
from .packer import Packer

IMPROVED, STOP = 1.0, 2.0
"""Verdicts; 0 where there is nothing to say."""


class Evaluations:
    """What the executor needs to run evaluations; on the last stage it also keeps the books.

    What is known of each adapter lies in its `evaluated`, so that checkpoints hold it.
    """

    def __init__(
        self,
        packer: Packer,
        by_microbatch: Mapping[int, Evaluation],
        settings: Sequence[EvaluationSettings],
        *,
        hear: Callable[[EvaluationRecord], None] | None = None,
    ) -> None:
        self.packer = packer
        self.settings = settings
        self._by_microbatch = by_microbatch
        self._hear = hear
        self._losses: dict[int, Tensor] = {}

    def covers(self, microbatch: int) -> bool:
        """Whether a microbatch is evaluated, not trained on."""
        return microbatch in self._by_microbatch

    def add(self, microbatch: int, loss: Tensor, adapters: Sequence[StageAdapter], figures: Figures | None) -> None:
        """Last stage: a microbatch's part of a validation loss, a scalar on the device."""
        evaluation = self._by_microbatch[microbatch]
        index = evaluation.adapter
        total = loss.double() + self._losses.pop(index, 0.0)
        if microbatch != evaluation.last_microbatch:
            self._losses[index] = total
            return
        adapter, patience = adapters[index], self.settings[index].early_stopping_patience
        known = adapter.evaluated
        best = known.get("best_loss", torch.full_like(total, math.inf))
        # What takes no more steps gets no better either.
        improved = (total < best) & adapter.alive
        stale = torch.where(improved, 0.0, known.get("stale", torch.zeros_like(total)) + 1.0)
        known["best_loss"], known["stale"] = torch.where(improved, total, best), stale
        known["verdict"] = improved.double() * IMPROVED
        if patience is not None:
            known["verdict"] += (stale >= patience).double() * STOP
        if figures is not None and self._hear is not None:
            figures.send(torch.stack([total, improved.double()]), _Told(self._hear, adapter.job.name, evaluation))

    def keeps_best(self, batch: Batch) -> bool:
        """Whether the Step of this batch brings a verdict that the adapter's best weights depend on."""
        adapter, step = batch
        settings = self.settings[adapter]
        return settings.load_best_model_at_end and step > 0 and is_due(step - 1, settings)

    def take_verdict(self, adapter: StageAdapter) -> Tensor:
        """Last stage: what is to be said of an adapter's last evaluation; said once."""
        silent = torch.zeros((), dtype=torch.float64, device=adapter.alive.device)
        return adapter.evaluated.pop("verdict", silent)


@dataclass(frozen=True, slots=True)
class _Told:
    hear: Callable[[EvaluationRecord], None]
    name: str
    evaluation: Evaluation

    def __call__(self, values: Sequence[float], ms: float) -> None:
        loss, improved = values
        self.hear(EvaluationRecord(adapter=self.name, step=self.evaluation.num_steps, loss=loss, best=bool(improved)))


def load_best(
    adapters: Sequence[StageAdapter],
    settings: Sequence[EvaluationSettings],
    share: Callable[[Tensor], None],
    *,
    evaluations: Evaluations | None,
    is_last: bool,
) -> None:
    """After the last step: the stages of the replica that evaluates go back to the best weights of the adapters that
    want it. All workers call it together; `evaluations` is None on those of other replicas, which keep their last ones.

    `share` sums a tensor on the host over all workers, in place. An adapter whose last step was evaluated hears only
    now how well.
    """
    for adapter, wanted in zip(adapters, settings, strict=True):
        if not wanted.load_best_model_at_end:
            continue
        verdict = torch.zeros((), dtype=torch.float64)
        if evaluations is not None and is_last:
            verdict += evaluations.take_verdict(adapter).cpu()
        share(verdict)
        if evaluations is None:
            continue
        if is_due(adapter.version - 1, wanted):
            adapter.keep_best((verdict == IMPROVED).to(adapter.alive.device))
        adapter.load_best()
