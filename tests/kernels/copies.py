"""What goes from the host to a device, counted. Without a GPU `meta` stands for one: it is not the host."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every copy from the host to another device is noted in `num_bytes`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source: Tensor = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            if source.device.type == "cpu" and result.device.type != "cpu":
                self.num_bytes.append(source.nbytes)
        return result
