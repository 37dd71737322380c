"""CUDA graphs of a stage's decoder layers, for microbatches whose work a GPU has done before the host has launched it.

Forward and backward of a microbatch are captured once for its bucket (buckets.py) and replayed for all others in it:
two launches in place of some hundred a layer. Embedding included; the head and its loss, whose rows are others each
time, stay outside.
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from ..kernels.upload import split
from ..traces.costs import RecomputeMode
from .batch import Filled, PackedBatch
from .buckets import BatchBucket, GraphBuckets
from .environment import asked_by
from .model import StageModel

GRAPHS: Final = "LORAPLEX_CUDA_GRAPHS"
"""Environment variable: `off` launches every kernel by itself."""
CHOICES: Final = ("auto", "off")

_ONE_CAPTURE: Final = threading.Lock()
"""Kernels that run beside a product share one second stream of the device, which only one capture can take along:
stages in threads of one process, as in tests, take turns."""

Layers = Callable[..., Tensor]
"""`inputs, rows=, routing=` -> hidden states, as StageModel's forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """Forward and backward of a bucket, with the tensors that both read and write at every replay."""

    buffer: Tensor
    """As `Filled.buffer`."""
    inputs: Tensor
    """Hidden states `[1, T, H]`; on the first stage the token ids, which lie in the buffer."""
    output: Tensor
    """Hidden states `[1, T, H]`."""
    output_grad: Tensor
    input_grad: Tensor | None
    """None on the first stage."""
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


@dataclass(slots=True, kw_only=True)
class Lane:
    """Graphs of several buckets that share the memory of their activations, and so serve one microbatch at a time."""

    pool: Any
    graphs: dict[BatchBucket, Captured] = field(default_factory=dict)
    num_bytes: int = 0
    """Of that memory."""
    busy: bool = False
    """From a forward to its backward."""


class LayerGraphs:
    """The graphs of one stage, captured when the second microbatch of a bucket comes.

    The first runs kernel by kernel, so that all are compiled and it is known which tables they want. As many lanes are
    opened as microbatches are in flight at once.
    """

    def __init__(self, layers: Layers, model: StageModel) -> None:
        self.buckets = GraphBuckets()
        self.capture = True
        """False: what is filled up runs kernel by kernel all the same. So it is once a capture has failed."""
        self.num_replayed = 0
        """Microbatches so far, forward."""
        self._layers = layers
        self._is_first = model.layout.is_first
        self._hidden_size = model.config.hidden_size
        self._weight = next(model.parameters())
        self._anchor = torch.zeros((), device=self._weight.device, requires_grad=True)
        self._stream: torch.cuda.Stream | None = None
        """Where captures take place, since they cannot on the default one."""
        self._lanes: list[Lane] = []
        self._ran: set[BatchBucket] = set()

    def run(self, inputs: Tensor, packed: PackedBatch) -> Tensor:
        """Hidden states `[1, T, H]` of a microbatch of a bucket, differentiable once.

        `inputs`: token ids with padding on the first stage, else hidden states without.
        """
        assert packed.filled is not None
        lane = self._lane(packed.filled) if torch.is_grad_enabled() else None
        if lane is not None:
            self.num_replayed += 1
            replayed: Tensor = _Replay.apply(  # type: ignore[no-untyped-call]
                lane, packed.filled, packed.num_rows, inputs, self._anchor
            )
            return replayed
        if not self._is_first:
            inputs = torch.nn.functional.pad(inputs, (0, 0, 0, packed.filled.bucket.rows.num_rows - packed.num_rows))
        return self._layers(inputs, rows=packed.rows, routing=packed.routing)[:, : packed.num_rows]

    def went_back(self, filled: Filled) -> None:
        """To be told of the backward of what `run` gave."""
        self._ran.add(filled.bucket)

    def num_lanes(self) -> int:
        """Microbatches that were in flight at once."""
        return len(self._lanes)

    def num_bytes(self) -> int:
        """What the lanes hold for activations: reserved once, and so in no count of what tensors take."""
        return sum(lane.num_bytes for lane in self._lanes)

    def _lane(self, filled: Filled) -> Lane | None:
        """A free one that has the bucket's graphs, captured now where none has; None where they cannot be yet."""
        if filled.bucket not in self._ran or not self._has_all_tables(filled):
            return None
        free = [lane for lane in self._lanes if not lane.busy]
        for lane in free:
            if filled.bucket in lane.graphs:
                return lane
        if not self.capture:
            return None
        lane = free[0] if free else Lane(pool=torch.cuda.graph_pool_handle())
        _make_room(self._weight.device)
        reserved = torch.cuda.memory_reserved(self._weight.device)
        try:
            with _ONE_CAPTURE:
                lane.graphs[filled.bucket] = self._capture(filled, lane.pool)
        except RuntimeError as error:
            # Slower is better than not at all: out of memory, or a library that cannot be captured.
            self.capture = False
            warnings.warn(f"small microbatches run kernel by kernel, since capture failed: {error}", stacklevel=2)
            return None
        lane.num_bytes += torch.cuda.memory_reserved(self._weight.device) - reserved
        if not free:
            self._lanes.append(lane)
        return lane

    def _has_all_tables(self, filled: Filled) -> bool:
        # One packed before the first of its bucket went back may lack some.
        heights = {tiles.height for tiles in filled.layers.routing.tables.tiles}
        return heights == self.buckets.wanted(filled.bucket).tiles

    def _capture(self, filled: Filled, pool: Any) -> Captured:
        buffer = filled.buffer.clone()
        token_ids, rows, routing = filled.layers.on(split(buffer, filled.layers.arrays))
        shape = (1, filled.bucket.rows.num_rows, self._hidden_size)
        inputs = token_ids if self._is_first else self._weight.new_zeros(shape).requires_grad_()
        output_grad = self._weight.new_zeros(shape)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._weight.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream), torch.autograd.set_multithreading_enabled(False):
            with _capturing(forward, pool):
                output = self._layers(inputs, rows=rows, routing=routing)
            with _capturing(backward, pool):
                torch.autograd.backward(output, output_grad)
        input_grad, inputs.grad = inputs.grad, None
        return Captured(
            buffer=buffer,
            inputs=inputs.detach(),
            output=output.detach(),
            output_grad=output_grad,
            input_grad=input_grad,
            forward=forward,
            backward=backward,
        )


class _Replay(torch.autograd.Function):
    """Hidden states `[1, T, H]` of the rows without padding."""

    @staticmethod
    def forward(ctx: Any, lane: Lane, filled: Filled, num_rows: int, inputs: Tensor, _anchor: Tensor) -> Tensor:
        captured = lane.graphs[filled.bucket]
        captured.buffer.copy_(filled.buffer)
        if captured.input_grad is not None:
            # What an earlier microbatch left behind these rows is padding's now: nobody reads what becomes of it.
            captured.inputs[:, :num_rows].copy_(inputs)
        captured.forward.replay()
        lane.busy = True
        ctx.lane, ctx.captured, ctx.num_rows = lane, captured, num_rows
        return captured.output[:, :num_rows].clone()

    @staticmethod
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Any, ...]:
        captured, num_rows = ctx.captured, ctx.num_rows
        captured.output_grad[:, :num_rows].copy_(output_grad)
        captured.backward.replay()
        ctx.lane.busy = False
        input_grad = None if captured.input_grad is None else captured.input_grad[:, :num_rows].clone()
        return None, None, None, input_grad, None


def layer_graphs(model: StageModel, *, recompute: RecomputeMode) -> LayerGraphs | None:
    """For a stage on a GPU; None where its microbatches cannot be replayed, or the environment says that none shall.

    Not in float32, where attention goes sample by sample. Raises InputError for another word in the environment.
    """
    asked = asked_by(GRAPHS, CHOICES)
    weight = next(model.parameters())
    if asked == "off" or weight.device.type != "cuda" or weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    return LayerGraphs(functools.partial(model, recompute=recompute), model)


def _make_room(device: torch.device) -> None:
    # A capture cannot take what the allocator keeps for others, nor have it given back.
    free, _ = torch.cuda.mem_get_info(device)
    if free < torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device):
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """What is launched on the current stream, which must not be the default one, becomes the graph.

    Below `torch.cuda.graph`, which would wait for the GPU and hand all unused memory back each time.
    """
    # Other threads, which copy checkpoints and watch messages, may call what a capturing one may not.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield
    except BaseException:
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        raise
    graph.capture_end()
