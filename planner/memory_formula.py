"""Memory by arithmetic, where nothing was measured: what the engine's decoder keeps on a GPU, from the model's shapes.

Of each token a layer keeps, from its forward to its backward, in elements of the model's type:

- none: the residual sum before and after attention (2 H), the outputs of both norms (2 H), q, k and v behind the rotary
  embedding, attention's output, gate and up (2 I), their product (I), S = x A^T of each linear, and in float32 one
  log-sum-exp a head;
- selective: the same without the outputs of the norms and the product;
- full: the layer's input (H).

Dropout keeps nothing: its masks are drawn again. Sizes of passing things were read off the backward of the engine's
layer: the gradients of gate and up, of their product and of two hidden states live at the same time.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..traces.costs import MemoryCosts
from ..traces.graph_tokens import GRAPH_TOKENS
from .jobs import EvaluationSettings, Job
from .model_shapes import ModelShapes

ADAPTER_BYTES_PER_PARAMETER = 22
"""float32 weight 4, AdamW's moments 8, the sum of gradients 4, a whole batch's gradients set aside 4, a copy in the
model's type for the kernels 2."""
_BEST_BYTES_PER_PARAMETER = 4
"""load_best_model_at_end keeps a second float32 copy of the weights."""
LOGIT_CHUNK_BYTES = 384 * 2**20
"""kernels/cross_entropy.py works on about so much of the logits at a time."""
OVERHEAD_BYTES = 1.0 * 2**30
"""CUDA context, kernels, workspaces of libraries, what the allocator cannot use."""
_HALF_BYTES = 2
_PADDED_RANK = 16
"""The kernels store an r rounded up to a power of two of at least this."""


def memory_of_shapes(
    shapes: ModelShapes,
    jobs: Sequence[Job],
    *,
    num_stages: int,
    load_in_4bit: bool = False,
    capacity_bytes: float = float("inf"),
) -> MemoryCosts:
    """Memory of training these jobs on so many stages. An estimate, not a measurement."""
    element, hidden, inner = shapes.dtype_bytes, shapes.hidden_size, shapes.intermediate_size
    parameters = mean_parameters(shapes, jobs)
    selective = _selective_elements(shapes) + _branch_elements(jobs)
    # Behind the linear and before the norm of each head, queries, keys and values are kept a second time.
    selective += shapes.query_size() + shapes.kv_size() if shapes.head_norms else 0
    embedding_bytes, head_bytes = shapes.end_weight_bytes(num_stages=num_stages)
    return MemoryCosts(
        layer_weight_bytes=shapes.layer_weight_bytes(load_in_4bit=load_in_4bit),
        embedding_weight_bytes=embedding_bytes,
        head_weight_bytes=head_bytes,
        adapter_bytes_per_layer=ADAPTER_BYTES_PER_PARAMETER * parameters,
        adapter_gradient_bytes_per_layer=4 * parameters,
        adapter_parameters_per_layer=parameters,
        activation_bytes_per_token_layer=(selective + 2 * hidden + inner) * element + 4 * shapes.num_heads,
        selective_bytes_per_token_layer=selective * element + 4 * shapes.num_heads,
        stage_bytes_per_token=(hidden + 2 * shapes.head_dim) * element,
        boundary_bytes_per_token=hidden * element,
        workspace_bytes_per_token=(3 * inner + 2 * hidden) * element,
        # The target rows behind the last layer, their change, and the gradient that is made of it.
        logit_bytes_per_target=3 * hidden * element,
        head_workspace_bytes=LOGIT_CHUNK_BYTES,
        overhead_bytes=OVERHEAD_BYTES,
        capacity_bytes=capacity_bytes,
    )


def memory_for_jobs(memory: MemoryCosts, shapes: ModelShapes, jobs: Sequence[Job]) -> MemoryCosts:
    """A measured profile's memory with the adapters of these jobs in place of those it was measured with.

    Unchanged where the profile does not say which those were.
    """
    if not memory.adapter_parameters_per_layer:
        return memory
    parameters = mean_parameters(shapes, jobs)
    factor = parameters / memory.adapter_parameters_per_layer
    return replace(
        memory,
        adapter_bytes_per_layer=memory.adapter_bytes_per_layer * factor,
        adapter_gradient_bytes_per_layer=memory.adapter_gradient_bytes_per_layer * factor,
        adapter_parameters_per_layer=parameters,
    )


def with_best_copies(
    memory: MemoryCosts, shapes: ModelShapes, jobs: Sequence[Job], evaluation: Sequence[EvaluationSettings]
) -> MemoryCosts:
    """The memory with the best weights so far beside the present ones, for the jobs that ask for them at the end.

    `evaluation`: one per job. Only the replica that evaluates keeps them, and no other holds more.
    """
    wanted = [job for job, looks in zip(jobs, evaluation, strict=True) if looks.load_best_model_at_end]
    more = _BEST_BYTES_PER_PARAMETER * mean_parameters(shapes, wanted) * len(wanted) / max(len(jobs), 1)
    return replace(memory, adapter_bytes_per_layer=memory.adapter_bytes_per_layer + more)


def with_graphs(memory: MemoryCosts, shapes: ModelShapes) -> MemoryCosts:
    """The memory with what the engine keeps on GPUs for microbatches that it replays as CUDA graphs.

    In half precision; in float32 it launches kernel by kernel. `LORAPLEX_CUDA_GRAPHS=off` is not looked at.
    """
    return replace(memory, graph_tokens=GRAPH_TOKENS if shapes.dtype_bytes == _HALF_BYTES else 0)


def mean_parameters(shapes: ModelShapes, jobs: Sequence[Job]) -> float:
    """Parameters of an adapter in one layer, mean over the jobs."""
    return sum(shapes.lora_parameters(job.lora.target_modules, r=job.lora.r) for job in jobs) / max(len(jobs), 1)


def _selective_elements(shapes: ModelShapes) -> int:
    attention = 2 * shapes.query_size() + 2 * shapes.kv_size()
    return 2 * shapes.hidden_size + attention + 2 * shapes.intermediate_size


def _branch_elements(jobs: Sequence[Job]) -> int:
    # S has a column for each linear and each of the largest r, padded; seven linears, though not all be targeted.
    largest = max((job.lora.r for job in jobs), default=0)
    return 7 * max(_PADDED_RANK, 1 << (largest - 1).bit_length()) if largest else 0
