"""A frozen linear with every adapter's LoRA matrices beside it, in place of each target of a stage."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..kernels.multi_lora import multi_lora_linear
from ..kernels.routing import Routing
from .model import StageModel


@dataclass(slots=True)
class RoutingSlot:
    """Where the linears of one stage find the routing of the microbatch at hand."""

    routing: Routing | None = None


class LoraLinear(nn.Module):
    """All adapters of one linear; which row belongs to which adapter comes with the microbatch's routing."""

    def __init__(self, base: nn.Linear, *, target: int, num_adapters: int, slot: RoutingSlot) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.target = target
        self.slot = slot
        # Plain lists: an entry is None where the adapter does not target this linear; adapters.py owns the parameters.
        self.lora_a: list[Tensor | None] = [None] * num_adapters
        self.lora_b: list[Tensor | None] = [None] * num_adapters

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K] -> [..., N]` for the rows that the slot's routing describes."""
        if self.slot.routing is None:
            raise RuntimeError(f"target {self.target} was called without a routing; set the stage's slot first")
        return multi_lora_linear(
            x, self.weight, self.bias, self.lora_a, self.lora_b, routing=self.slot.routing, target=self.target
        )


def insert_lora(
    model: StageModel, *, target_ids: dict[str, int], num_adapters: int, slot: RoutingSlot
) -> dict[str, LoraLinear]:
    """Replace the linears named in `target_ids` (name in the whole model -> id) in place; returns the new ones."""
    made = {}
    for name, linear in list(model.linears()):
        if name in target_ids:
            made[name] = LoraLinear(linear, target=target_ids[name], num_adapters=num_adapters, slot=slot)
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, made[name])
    return made
