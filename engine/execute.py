"""The interpreter: walks one worker's itinerary. What runs when is the Program's business alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..planner.plan import Plan
from ..planner.program import ActionKind
from .batch import PackedBatch, Packer
from .errors import EngineError
from .itinerary import Batch, Leg
from .loss import adapter_losses
from .mailbox import Mailbox, Sums, zero
from .message import Wire
from .metrics import StepRecord
from .recorder import Recorder, now_ns
from .stage import Stage
from .transport import Transport

BatchLosses = tuple[tuple[Batch, Tensor], ...]
"""What a microbatch adds to the loss of each batch in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a forward leaves for its backward."""

    inputs: Tensor
    output: Tensor
    """Hidden states, or on the last stage the scalar loss."""
    losses: BatchLosses = ()
    """Last stage: what this microbatch adds to each batch's loss."""


class Executor:
    """Runs legs on a Stage.

    `on_step` hears of each Step on the last stage, `before_leg` of every action before it waits for anything,
    `after_leg` of its place in the itinerary when it is done.
    """

    def __init__(
        self,
        stage: Stage,
        plan: Plan,
        packer: Packer,
        transport: Transport,
        *,
        recorder: Recorder,
        sums: Sums | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
        before_leg: Callable[[Leg], None] | None = None,
        after_leg: Callable[[int], None] | None = None,
    ) -> None:
        self.stage = stage
        self.plan = plan
        self.sums = sums or Sums()
        self._packer = packer
        self._transport = transport
        self._recorder = recorder
        self._on_step = on_step
        self._before_leg = before_leg
        self._after_leg = after_leg
        self._held: dict[int, Held] = {}
        self._begin_ns = 0
        parameter = next(stage.model.parameters())
        self._device = parameter.device
        self._mailbox = Mailbox(
            transport,
            Wire(hidden_size=stage.model.config.hidden_size, dtype=parameter.dtype, device=parameter.device),
            sums=self.sums,
            recorder=recorder,
            name=stage.name(plan.num_replicas),
        )

    def run(self, legs: Sequence[Leg]) -> None:
        """Walk the legs. Raises EngineError naming worker and microbatch when something breaks."""
        self._begin_ns = now_ns()
        for place, leg in enumerate(legs):
            microbatch = leg.action.microbatch
            if self._before_leg is not None:
                self._before_leg(leg)
            self._mailbox.post(leg.post)
            if leg.receive is not None:
                self._mailbox.take(leg.receive, leg)
            start = self._recorder.mark()
            payload = self._act(leg)
            self._recorder.add("compute", leg.word, microbatch=microbatch, start=start, end=self._recorder.mark())
            if leg.send is not None:
                self._mailbox.send(leg.send, payload, leg)
            if self._after_leg is not None:
                self._after_leg(place)
        self._mailbox.finish()

    def _act(self, leg: Leg) -> Tensor | None:
        payload = None
        batch = (leg.action.adapter, leg.action.global_batch)
        match leg.action.kind:
            case ActionKind.FORWARD:
                payload = self._forward(leg)
            case ActionKind.BACKWARD:
                payload = self._backward(leg)
            case ActionKind.EVALUATE:
                payload = self._evaluate(leg)
            case ActionKind.REDUCE:
                self._reduce(batch)
            case _:
                self._step(batch, leg)
        for adapter, step in leg.closes:
            after = self.sums.totals.pop((adapter, step), zero(self._device))
            self.sums.totals[adapter, step] = self.stage.adapters[adapter].close(step, after=after)
        return payload

    def _forward(self, leg: Leg) -> Tensor | None:
        microbatch = self.plan.microbatches[leg.action.microbatch]
        for batch in microbatch.global_batches():
            self._check_version(batch, leg)
        packed = self._packer.pack(microbatch)
        inputs = packed.token_ids if leg.receive is None else self._mailbox.payload(leg.receive).requires_grad_()
        hidden = self._hidden(inputs, packed)
        if not self.stage.layout.is_last:
            self._held[leg.action.microbatch] = Held(inputs=inputs, output=hidden)
            return hidden.detach()
        losses = self._losses(hidden, packed)
        for batch, loss in losses:
            self._check_finite(loss.item(), batch, what="loss")
        total = torch.stack([loss for _, loss in losses]).sum()
        known = tuple((batch, loss.detach()) for batch, loss in losses)
        self._held[leg.action.microbatch] = Held(inputs=inputs, output=total, losses=known)
        return None

    @torch.no_grad()
    def _evaluate(self, leg: Leg) -> Tensor | None:
        packed = self._packer.pack(self.plan.microbatches[leg.action.microbatch])
        inputs = packed.token_ids if leg.receive is None else self._mailbox.payload(leg.receive)
        hidden = self._hidden(inputs, packed)
        if not self.stage.layout.is_last:
            return hidden
        self._add(self._losses(hidden, packed))
        return None

    def _hidden(self, inputs: Tensor, packed: PackedBatch) -> Tensor:
        self.stage.slot.routing = packed.routing
        hidden = self.stage.model(inputs, position_ids=packed.position_ids, sample_lengths=packed.sample_lengths)
        return torch.as_tensor(hidden)

    def _losses(self, hidden: Tensor, packed: PackedBatch) -> BatchLosses:
        # The head sees only rows whose next token is learned.
        logits = self.stage.model.logits(hidden[0, packed.target_rows])
        parts = adapter_losses(logits, packed.target_ids, packed.shares)
        return tuple(
            ((share.adapter, share.global_batch), part) for share, part in zip(packed.shares, parts, strict=True)
        )

    def _add(self, losses: BatchLosses) -> None:
        for batch, loss in losses:
            self.sums.losses[batch] = self.sums.losses.get(batch, zero(self._device)) + loss

    def _backward(self, leg: Leg) -> Tensor | None:
        held = self._held.pop(leg.action.microbatch)
        gradient = None if leg.receive is None else self._mailbox.payload(leg.receive)
        torch.autograd.backward(held.output, gradient)
        self._add(held.losses)
        return None if self.stage.layout.is_first else held.inputs.grad

    def _reduce(self, batch: Batch) -> None:
        num_stages, stage = self.plan.num_stages, self.stage.layout.stage
        workers = [replica * num_stages + stage for replica in range(self.plan.num_replicas)]
        for parameter in self.stage.adapters[batch[0]].parameters.values():
            # A replica whose slots held nothing of this batch brings zeros.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self._transport.reduce(gradient, workers=workers)
            parameter.grad = gradient
        if self.stage.layout.is_last:
            loss = self.sums.losses.get(batch, zero(self._device))
            self._transport.reduce(loss, workers=workers)
            self.sums.losses[batch] = loss

    def _step(self, batch: Batch, leg: Leg) -> None:
        self._check_version(batch, leg)
        total = self.sums.totals.pop(batch)
        self._check_finite(total.item(), batch, what="squared gradient norm")
        before = self.sums.updates.pop(batch, zero(self._device))
        report = self.stage.adapters[batch[0]].step(total_squares=total, update_squares=before)
        if self.stage.layout.is_last:
            self._report(batch, learning_rate=report.learning_rate, total=total, update=report.update_squares)
        else:
            # They leave with the next message down.
            self.sums.totals[batch], self.sums.updates[batch] = total, report.update_squares

    def _report(self, batch: Batch, *, learning_rate: float, total: Tensor, update: Tensor) -> None:
        adapter, step = batch
        job = self.plan.jobs[adapter]
        record = StepRecord(
            adapter=job.name,
            step=step,
            loss=self.sums.losses.pop(batch).item(),
            learning_rate=learning_rate,
            grad_norm=total.sqrt().item(),
            update_norm=update.sqrt().item(),
            tokens=sum(sample.num_tokens for sample in job.global_batches[step]),
            ms=(now_ns() - self._begin_ns) / 1e6,
        )
        if self._on_step is not None:
            self._on_step(record)

    def _check_version(self, batch: Batch, leg: Leg) -> None:
        adapter, step = batch
        version = self.stage.adapters[adapter].version
        if version != step:
            raise EngineError(
                f"{self.stage.name()} at {leg.word}: adapter '{self.plan.jobs[adapter].name}' has taken {version} "
                f"steps where {step} are due; the Program breaks its plan, make it with build_program"
            )

    def _check_finite(self, value: float, batch: Batch, *, what: str) -> None:
        if not math.isfinite(value):
            adapter, step = batch
            raise EngineError(
                f"adapter '{self.plan.jobs[adapter].name}', step {step}: the {what} is {value}; "
                "lower its learning_rate or look at its data"
            )
