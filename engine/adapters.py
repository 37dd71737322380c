"""One adapter's share on one stage: parameters, optimizer, gradient norm, step, version."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels.ordered_sum import ordered_sum
from ..planner.jobs import Job
from .flat import FlatTensors
from .gradient_store import GradientStore, ParameterGradients
from .host_copy import HostCopy
from .learning_rate import RISKY_RATE, holds, learning_rate_at

# torch's clip_grad_norm_ adds this to the norm it divides by; the same here, so that clipping is the same.
_CLIP_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one stage knows of an optimizer step after it. Scalars on the stage's device: nobody has waited for them."""

    learning_rate: float
    grad_norm: Tensor
    """float64: norm over all layers of all stages, before clipping."""
    update_squares: Tensor
    """float64: squared norm of the change of the weights, from the first stage to this one."""
    taken: Tensor
    """bool: whether the weights were changed."""


class StageAdapter:
    """The LoRA matrices of one adapter in the layers of one stage, with their own AdamW.

    `parameters` is keyed by the names in the whole model and stands in model order. `gradients` holds those of the
    batch in the making, `closed` whole gradients of batches that wait for their step. `version` counts the steps that
    are behind it, those that were left out included. `alive`, a bool on the device, says whether it takes any more, and
    `alive_before` whether it did before the last one.
    """

    def __init__(
        self, job: Job, parameters: Mapping[str, nn.Parameter], *, gradients: GradientStore | None = None
    ) -> None:
        settings = job.optimizer
        self.job = job
        self.parameters = dict(parameters)
        self._flat_weight = nn.Parameter(_laid_flat(self.parameters).whole)
        self.gradients = ParameterGradients(self.parameters) if gradients is None else gradients
        self.gradients.refresh()
        self.version = 0
        self.closed: dict[int, FlatTensors] = {}
        # Over all matrices as one: AdamW knows no shapes, and 448 matrices of an 8B model took the host 27 ms a step.
        self.optimizer = torch.optim.AdamW(
            [self._flat_weight],
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.best: FlatTensors | None = None
        """Copies of the parameters as the best evaluation found them, where somebody asks for them; NaN: none yet."""
        self.before: FlatTensors | None = None
        """Behind a step at a risky rate: the parameters before it, until the next gradient shows that it was good."""
        self.evaluated: dict[str, Tensor] = {}
        """What the last stage knows of its evaluations (evaluations.py): float64 scalars."""
        self.alive = self.alive_before = torch.ones((), dtype=torch.bool, device=self._flat_weight.device)
        self._known = deque([HostCopy(self.alive)] * 2, maxlen=2)

    def close(self, global_batch: int, *, after: Tensor, reduce: Callable[[Tensor], None] | None = None) -> Tensor:
        """Set the gradients of a batch aside for its step; `after` plus their squared norm, float64.

        `after` is that of the stages after this one. Added one matrix at a time from the last layer to the first, so
        that the sum has the same bits however the layers are cut into stages. `reduce` sums a flat tensor over the
        replicas, in place.
        """
        gradients = FlatTensors.like(self.parameters)
        self.gradients.take(gradients)
        if reduce is not None:
            reduce(gradients.whole)
        self.closed[global_batch] = gradients
        return ordered_sum(gradients.squares().flip(0), start=after)

    def takes_samples(self) -> bool:
        """Whether samples of the batch in the making pass through: not where a step before the last one halted it.

        What the last step did may be known only when the device has come to it, which no host should wait for. So the
        first batch after the halt still passes, and those after it do not.
        """
        return bool(self._known[0].get())

    @torch.no_grad()
    def keep_best(self, improved: Tensor) -> None:
        """Remember the parameters as they are where `improved`, a bool on the device, is true."""
        if self.best is None:
            # Weights that are NaN have no loss that could improve anything, so NaN can say that nothing was kept.
            self.best = FlatTensors.like(self.parameters)
            self.best.whole.fill_(math.nan)
        self.best.whole.copy_(torch.where(improved, self._flat_weight, self.best.whole))

    @torch.no_grad()
    def load_best(self) -> None:
        """Go back to the best parameters, if any were kept."""
        if self.best is not None:
            self._flat_weight.copy_(torch.where(self.best.whole.isnan(), self._flat_weight, self.best.whole))
            self.gradients.refresh()

    @torch.no_grad()
    def step(
        self,
        *,
        total_squares: Tensor,
        update_squares: Tensor,
        forever: bool = True,
        stopped: Tensor | None = None,
    ) -> StepReport:
        """Take the next step with the gradients that `close` set aside, clipped by the norm over all stages.

        `update_squares` is the squared change on the stages before this one. Where `total_squares` is no finite number,
        or the rate none that float32 can add, weights and optimizer stay as they are, bit for bit; with `forever`, from
        now on, and from now on too where `stopped`, a bool on the device, is true. Behind a step at a risky rate such a
        total tells of that step: the weights go back to those before it. All stages get the same total and verdict, so
        all decide alike, on the device: the host does not wait to hear how.
        """
        settings = self.job.optimizer
        self.alive_before = self.alive
        if stopped is not None:
            self.alive = self.alive & ~stopped
        rate = learning_rate_at(self.version, settings=settings, num_steps=len(self.job.global_batches))
        finite = torch.isfinite(total_squares)
        back = None if self.before is None else self.alive & ~finite
        taken = self.alive & finite if holds(rate, settings=settings) else torch.zeros_like(self.alive)
        if forever:
            self.alive = taken
        self._known.append(HostCopy(self.alive))
        grad_norm = total_squares.sqrt()
        gradients = self.closed.pop(self.version)
        if settings.max_grad_norm is not None:
            factor = (settings.max_grad_norm / (grad_norm + _CLIP_EPS)).clamp(max=1.0)
            gradients.whole.mul_(factor.to(gradients.whole.dtype))
        changes = self._changed_by(gradients, rate=rate, taken=taken, back=back)
        self.version += 1
        return StepReport(
            learning_rate=rate,
            grad_norm=grad_norm,
            update_squares=ordered_sum(changes.squares(), start=update_squares),
            taken=taken,
        )

    def _changed_by(self, gradients: FlatTensors, *, rate: float, taken: Tensor, back: Tensor | None) -> FlatTensors:
        # By how much each matrix moved: by AdamW, whose kernel does nothing where found_inf is 1 and takes the step
        # count back, or back to where it was before the last step.
        self._flat_weight.grad = gradients.whole
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = rate
        self.optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]
        changes = FlatTensors.like(self.parameters)
        changes.whole.copy_(self._flat_weight)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.before is not None and back is not None:
            self._flat_weight.copy_(torch.where(back, self.before.whole, self._flat_weight))
        # Behind a step that was left out nothing is at risk: those before it may be the broken ones.
        held = torch.where(taken, changes.whole, self._flat_weight) if rate >= RISKY_RATE else None
        self.before = None if held is None else self._cut(held)
        changes.whole.sub_(self._flat_weight)
        self.gradients.refresh()
        return changes

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the host of what a resume needs: beside what trains there is no room counted on for them.

        `alive`, `alive_before`, `weight/NAME`, `best/NAME`, `before/NAME`, `grad/NAME`, `closed/K/NAME`,
        `optimizer/FIELD/NAME`, `evaluated/FIELD`.
        """
        found = {"alive": _on_host(self.alive), "alive_before": _on_host(self.alive_before)}
        wholes = {"weight": self._flat_weight.detach()}
        wholes |= {
            kind: kept.whole for kind, kept in (("best", self.best), ("before", self.before)) if kept is not None
        }
        wholes |= {f"closed/{global_batch}": gradients.whole for global_batch, gradients in self.closed.items()}
        found |= {f"evaluated/{field}": _on_host(value) for field, value in self.evaluated.items()}
        found |= {f"grad/{name}": _on_host(gradient) for name, gradient in self.gradients.gathered().items()}
        for field, value in self.optimizer.state[self._flat_weight].items():
            # The moments by matrix; the count of steps, one for all, with each, since stages may be cut anew.
            if value.numel() > 1:
                wholes[f"optimizer/{field}"] = value
            else:
                count = _on_host(value)
                found |= {f"optimizer/{field}/{name}": count.clone() for name in self.parameters}
        for kind, whole in wholes.items():
            found |= {f"{kind}/{name}": part for name, part in self._cut(_on_host(whole)).items()}
        return found

    def load(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        """Take back what `tensors` gave, whatever else is in it. Raises KeyError where a weight is missing."""
        self.version = version
        self.alive = tensors.get("alive", self.alive).to(self.alive.device, copy=True)
        self.alive_before = tensors.get("alive_before", self.alive).to(self.alive.device, copy=True)
        self._known.extend(HostCopy(flag) for flag in (self.alive_before, self.alive))
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"weight/{name}"])
        partial: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            field, _, name = rest.partition("/") if kind in ("closed", "optimizer") else ("", "", rest)
            if kind == "evaluated":
                self.evaluated[rest] = tensor.to(self.alive.device, copy=True)
            if name not in self.parameters:
                continue
            if kind == "grad":
                partial[name] = tensor.to(self._flat_weight.device, copy=True)
            elif kind == "best":
                self.best = FlatTensors.like(self.parameters) if self.best is None else self.best
                self.best[name].copy_(tensor)
            elif kind == "before":
                self.before = FlatTensors.like(self.parameters) if self.before is None else self.before
                self.before[name].copy_(tensor)
            elif kind == "closed":
                if int(field) not in self.closed:
                    self.closed[int(field)] = FlatTensors.like(self.parameters)
                self.closed[int(field)][name].copy_(tensor)
            elif kind == "optimizer":
                self._load_state(field, name, tensor)
        self.gradients.put(partial)
        self.gradients.refresh()

    def _load_state(self, field: str, name: str, value: Tensor) -> None:
        state = self.optimizer.state[self._flat_weight]
        if value.numel() == 1 and self.parameters[name].numel() > 1:
            state[field] = value.to(self._flat_weight.device, copy=True)
            return
        if field not in state:
            state[field] = torch.empty_like(self._flat_weight)
        self._cut(state[field])[name].copy_(value)

    def _cut(self, whole: Tensor) -> FlatTensors:
        return FlatTensors(whole, {name: parameter.shape for name, parameter in self.parameters.items()})


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def _laid_flat(parameters: Mapping[str, nn.Parameter]) -> FlatTensors:
    # The parameters stay the same objects; what they hold moves.
    laid = FlatTensors.like(parameters)
    for name, parameter in parameters.items():
        laid[name].copy_(parameter.detach())
        parameter.data = laid[name]
    return laid
