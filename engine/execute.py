"""The interpreter: walks one worker's itinerary. What runs when is the Program's business alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..planner.jobs import OnNonfinite
from ..planner.plan import Plan
from ..planner.program import ActionKind
from .adapters import StageAdapter, StepReport
from .batch import PackedBatch
from .errors import EngineError
from .evaluations import IMPROVED, STOP, Evaluations
from .figures import Figures
from .garbage import collecting_when_told
from .itinerary import Batch, Leg
from .loss import adapter_losses
from .mailbox import Mailbox, Sums, zero
from .message import Wire
from .metrics import StepRecord
from .pack_ahead import PackAhead, packed_before
from .packer import Packer
from .recorder import Recorder
from .reports import PendingStep, StepReports
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
    packed: PackedBatch
    losses: BatchLosses = ()
    """Last stage: what this microbatch adds to each batch's loss."""


class Executor:
    """Runs legs on a Stage. On a GPU the host only launches: no loss and no norm is waited for, and whether an adapter
    takes any more samples only as of a step that is a whole global batch of it back.

    `on_step` hears of each Step on the last stage once it is known how it went, in order; `flush` waits for that.
    `before_leg` hears of every action before it waits for anything, `after_leg` of its place in the itinerary when it
    has been launched.
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
        on_nonfinite: OnNonfinite = "quarantine",
        on_step: Callable[[StepRecord], None] | None = None,
        evaluations: Evaluations | None = None,
        before_leg: Callable[[Leg], None] | None = None,
        after_leg: Callable[[int], None] | None = None,
    ) -> None:
        self.stage = stage
        self.plan = plan
        self.sums = sums or Sums()
        self._transport = transport
        self._recorder = recorder
        self._on_nonfinite = on_nonfinite
        self._evaluations = evaluations
        self._before_leg = before_leg
        self._after_leg = after_leg
        self._held: dict[int, Held | None] = {}
        self._packed = PackAhead(plan, packer, stage.adapters, evaluations=evaluations)
        parameter = next(stage.model.parameters())
        self._device = stage.device
        self.sums.move(self._device)
        self._figures = Figures()
        self._reports = None
        if on_step is not None and stage.layout.is_last:
            halted = [adapter.job.name for adapter in stage.adapters if not adapter.alive]
            self._reports = StepReports(on_step, self._figures, on_nonfinite=on_nonfinite, halted=halted)
        self._mailbox = Mailbox(
            transport,
            Wire(hidden_size=stage.model.config.hidden_size, dtype=parameter.dtype, device=parameter.device),
            sums=self.sums,
            recorder=recorder,
            name=stage.name(plan.num_replicas),
        )

    def run(self, legs: Sequence[Leg]) -> None:
        """Walk the legs. Raises EngineError naming worker and microbatch when something breaks."""
        self._figures.begin(self._device)
        # Backwards run in this thread: autograd's own would take turns with it for Python's lock.
        with collecting_when_told() as collect, torch.autograd.set_multithreading_enabled(False):
            self._walk(legs, collect)
        self._mailbox.finish()
        self.flush()

    def flush(self) -> None:
        """Wait until all steps and evaluations so far have been told."""
        self._figures.flush()

    def _walk(self, legs: Sequence[Leg], collect: Callable[[], None]) -> None:
        # On a CPU packing is work like any other.
        packs = packed_before(legs) if self._device.type == "cuda" else [None] * len(legs)
        for place, (leg, packed) in enumerate(zip(legs, packs, strict=True)):
            microbatch = leg.action.microbatch
            if self._before_leg is not None:
                self._before_leg(leg)
            self._mailbox.post(leg.post)
            if packed is not None:
                # The host packs while the message is on its way.
                self._packed.prepare(packed)
            if leg.receive is not None:
                self._mailbox.take(leg.receive, leg)
            start = self._recorder.mark()
            payload = self._act(leg)
            self._recorder.add("compute", leg.word, microbatch=microbatch, start=start, end=self._recorder.mark())
            if leg.send is not None:
                self._mailbox.send(leg.send, payload, leg)
            if self._after_leg is not None:
                self._after_leg(place)
            self._figures.tell()
            if leg.action.kind in (ActionKind.STEP, ActionKind.EVALUATE):
                collect()

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
                pass  # closing the batch is all there is to it
            case _:
                self._step(batch, leg)
        for closed in leg.closes:
            self._close(closed, reduce=self._reduce if leg.action.kind is ActionKind.REDUCE else None)
        return payload

    def _close(self, batch: Batch, *, reduce: Callable[[Tensor], None] | None) -> None:
        adapter, step = batch
        owner = self.stage.adapters[adapter]
        if self.stage.layout.is_last:
            told = self._verdict(owner)
            known = torch.stack([self.sums.losses.get(batch, zero(self._device)), told])
            if reduce is not None:
                reduce(known)
            loss, verdict = known.unbind()
            self.sums.losses[batch] = loss
            # 0, or NaN where the loss is no finite number: then the total is NaN too, by which every stage decides.
            after = loss - loss
        else:
            # With replicas, a stage that holds nothing of the batch still hears of it from the stage after.
            after, verdict = self.sums.totals.pop(batch).unbind()
        self.sums.totals[batch] = torch.stack([owner.close(step, after=after, reduce=reduce), verdict])

    def _verdict(self, adapter: StageAdapter) -> Tensor:
        return zero(self._device) if self._evaluations is None else self._evaluations.take_verdict(adapter)

    def _forward(self, leg: Leg) -> Tensor | None:
        for batch in self.plan.microbatches[leg.action.microbatch].global_batches():
            self._check_version(batch, leg)
        packed = self._packed.take(leg.action)
        came = None if leg.receive is None else self._mailbox.payload(leg.receive)
        if packed is None:
            self._held[leg.action.microbatch] = None
            return None
        inputs = packed.token_ids if came is None else came[:, : packed.num_rows].requires_grad_()
        hidden = self._hidden(inputs, packed)
        if not self.stage.layout.is_last:
            self._held[leg.action.microbatch] = Held(inputs=inputs, output=hidden, packed=packed)
            return hidden.detach()
        losses = self._losses(hidden, packed)
        total = torch.stack([loss for _, loss in losses]).sum()
        known = tuple((batch, loss.detach()) for batch, loss in losses)
        self._held[leg.action.microbatch] = Held(inputs=inputs, output=total, packed=packed, losses=known)
        return None

    @torch.no_grad()
    def _evaluate(self, leg: Leg) -> Tensor | None:
        packed = self._packed.take(leg.action)
        came = None if leg.receive is None else self._mailbox.payload(leg.receive)
        if packed is None:
            return None
        inputs = packed.token_ids if came is None else came
        hidden = self._hidden(inputs, packed)
        if not self.stage.layout.is_last:
            return hidden
        losses = self._losses(hidden, packed)
        if self._evaluations is None:
            self._add(losses)
        else:
            ((_, loss),) = losses
            figures = None if self._reports is None else self._figures
            self._evaluations.add(leg.action.microbatch, loss, self.stage.adapters, figures)
        return None

    def _hidden(self, inputs: Tensor, packed: PackedBatch) -> Tensor:
        stage = self.stage
        if packed.filled is not None and stage.graphs is not None:
            return stage.graphs.run(inputs, packed)
        hidden: Tensor = stage.model(inputs, rows=packed.rows, routing=packed.routing, recompute=stage.recompute)
        return hidden

    def _losses(self, hidden: Tensor, packed: PackedBatch) -> BatchLosses:
        # The head sees only rows whose next token is learned.
        model = self.stage.model
        rows = model.head_norm(hidden[0].index_select(0, packed.target_rows))
        parts = adapter_losses(rows, model.head_weight(), packed.target_ids, packed.shares)
        return tuple(
            ((share.adapter, share.global_batch), part) for share, part in zip(packed.shares, parts, strict=True)
        )

    def _add(self, losses: BatchLosses) -> None:
        for batch, loss in losses:
            self.sums.losses[batch] = self.sums.losses.get(batch, zero(self._device)) + loss

    def _backward(self, leg: Leg) -> Tensor | None:
        held = self._held.pop(leg.action.microbatch)
        gradient = None if leg.receive is None else self._mailbox.payload(leg.receive)
        if held is None:
            return None
        if gradient is not None:
            # A message has room for all rows that the plan has.
            gradient = gradient[:, : held.packed.num_rows]
        torch.autograd.backward(held.output, gradient)
        if held.packed.filled is not None and self.stage.graphs is not None:
            self.stage.graphs.went_back(held.packed.filled)
        self._add(held.losses)
        return None if self.stage.layout.is_first else held.inputs.grad

    def _reduce(self, tensor: Tensor) -> None:
        num_stages, stage = self.plan.num_stages, self.stage.layout.stage
        workers = [replica * num_stages + stage for replica in range(self.plan.num_replicas)]
        self._transport.reduce(tensor, workers=workers)

    def _step(self, batch: Batch, leg: Leg) -> None:
        self._check_version(batch, leg)
        total, verdict = self.sums.totals.pop(batch).unbind()
        before = self.sums.updates.pop(batch, zero(self._device))
        adapter = self.stage.adapters[batch[0]]
        if self._evaluations is not None and self._evaluations.keeps_best(batch):
            # The weights are still those that were evaluated.
            adapter.keep_best(verdict == IMPROVED)
        report = adapter.step(
            total_squares=total,
            update_squares=before,
            forever=self._on_nonfinite != "skip",
            stopped=verdict == STOP,
        )
        if self.stage.layout.is_last:
            self._report(batch, report, total=total, stopped=verdict == STOP)
        else:
            # They leave with the next message down.
            self.sums.totals[batch], self.sums.updates[batch] = torch.stack([total, verdict]), report.update_squares

    def _report(self, batch: Batch, report: StepReport, *, total: Tensor, stopped: Tensor) -> None:
        adapter, step = batch
        job = self.plan.jobs[adapter]
        loss = self.sums.losses.pop(batch)
        if self._reports is None:
            return
        pending = PendingStep(
            adapter=job.name,
            step=step,
            learning_rate=report.learning_rate,
            tokens=sum(sample.num_tokens for sample in job.global_batches[step]),
        )
        values = [loss, total, report.update_squares, report.taken.double(), stopped.double()]
        self._reports.send(pending, torch.stack(values))

    def _check_version(self, batch: Batch, leg: Leg) -> None:
        adapter, step = batch
        version = self.stage.adapters[adapter].version
        if version != step:
            raise EngineError(
                f"{self.stage.name()} at {leg.word}: adapter '{self.plan.jobs[adapter].name}' has taken {version} "
                f"steps where {step} are due; the Program breaks its plan, make it with build_program"
            )
