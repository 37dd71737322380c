"""Nobody in kernels and engine makes the host wait for a GPU, or sends host data to one but through kernels/upload.py.

A list of words, found in the source, with every place where one of them is right and why. What runs before, after or
beside training is left out. On a GPU tests/engine/test_gpu_waiting.py sees the same while a stage trains.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAITING = {"cpu", "item", "masked_select", "nonzero", "numpy", "synchronize", "tolist"}
"""Methods that read on the host what a device may still be computing, or wait for it in so many words."""
SENDING = {"cuda", "pin_memory"}
"""Methods that move host data, or prepare to."""
MAKING = {"as_tensor", "frombuffer", "from_numpy", "tensor"}
"""Functions of torch that make a tensor of host data: with `device=`, where an ordinary copy would send it."""

BESIDE_TRAINING = (
    "bench*", "measure*", "profile*", "gpu_profile", "tune", "parity", "solo", "merge", "export", "hand_in", "weights",
    "random_weights", "place_weight", "nf4_stored", "peft_folder", "init_adapter", "insert_adapters", "checkpoint",
    "cut", "base_identity", "interleave", "validate", "clock", "connect", "collect", "fit_check", "lifeline", "gloo",
    "device_memory", "ranking",
)  # fmt: skip
"""Files whose code runs once or never in a run: benchmarks, loading, checkpoints, collective talk on the host."""

RIGHT = {
    ("kernels/upload.py", "pin_memory"): "this is the place",
    ("kernels/upload.py", "to"): "this is the place",
    ("kernels/upload.py", "numpy"): "of a buffer on the host",
    ("kernels/host_routing.py", "numpy"): "of token indices that are on the host",
    ("kernels/tables.py", "synchronize"): "tables of compiled graphs, kept for calls on other streams",
    ("kernels/reference.py", "to"): "the slow truth",
    ("kernels/routing.py", "numpy"): "a description, which is on the host",
    ("kernels/ordered_sum.py", "item"): "on a CPU",
    ("kernels/ordered_sum.py", "tolist"): "on a CPU",
    ("kernels/nf4.py", "tensor"): "16 levels, when a weight is packed",
    ("engine/packer.py", "tolist"): "of targets on the host",
    ("engine/adapters.py", "to"): "a checkpoint is loaded",
    ("engine/mailbox.py", "to"): "once, when a run begins",
    ("engine/model.py", "to"): "the model is built",
    ("engine/evaluations.py", "cpu"): "after the last step",
    ("engine/evaluations.py", "to"): "after the last step",
    ("engine/device_clock.py", "synchronize"): "of an event that is past, or before the first mark",
    ("engine/figures.py", "tolist"): "of what has come to the host",
    ("engine/host_copy.py", "pin_memory"): "on the way to the host",
    (
        "engine/host_copy.py",
        "synchronize",
    ): "of a step that lies a global batch back, where 64 figures are under way, or when the run ends",
    ("engine/message.py", "tolist"): "of a header that has come to the host",
    ("engine/nccl.py", "synchronize"): "the run begins",
    ("engine/nccl_end.py", "synchronize"): "in the threads that launch transfers",
    ("engine/nccl_sums.py", "synchronize"): "once for each adapter's step, for safety",
    ("engine/nccl_wire.py", "synchronize"): "the run ends",
    ("engine/notes.py", "numpy"): "notes are on the host",
    ("engine/peer.py", "synchronize"): "four messages are under way, and the first is still to be emptied",
    ("engine/peer_memory.py", "synchronize"): "when a run ends",
    ("engine/staged.py", "pin_memory"): "messages go through the host there",
    ("engine/staged.py", "synchronize"): "in the thread that sends, and where gloo adds up on the host",
    ("engine/rendezvous.py", "cpu"): "between threads of a test",
}


def found_in(source: str) -> set[str]:
    """The words of a file that make the host wait or move what is on it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg for keyword in node.keywords}
        if "pin_memory" in keywords:
            found.add("pin_memory")
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
            places = [ast.unparse(argument) for argument in [*node.args, *[given.value for given in node.keywords]]]
            goes = name == "to" and any("device" in place or "cuda" in place for place in places)
            made_there = name in MAKING and owner == "torch" and "device" in keywords
            if goes or made_there or (name in WAITING | SENDING and owner != "np"):
                found.add(name)
    return found


def sources() -> Iterator[Path]:
    for room in ("kernels", "engine"):
        for path in sorted((ROOT / room).glob("*.py")):
            if not any(path.match(f"{pattern}.py") for pattern in BESIDE_TRAINING):
                yield path


def test_nobody_waits_for_a_device_or_sends_to_one_but_where_it_is_right() -> None:
    found = {
        (str(path.relative_to(ROOT)), word) for path in sources() for word in found_in(path.read_text(encoding="utf-8"))
    }
    assert found == RIGHT.keys()


def test_what_is_left_out_is_there() -> None:
    rooms = [ROOT / "kernels", ROOT / "engine"]
    assert [name for name in BESIDE_TRAINING if not any(list(room.glob(f"{name}.py")) for room in rooms)] == []


def test_the_search_sees_what_it_looks_for() -> None:
    wrong = {
        "loss.item()": "item",
        "x.nonzero()": "nonzero",
        "torch.nonzero(x)": "nonzero",
        "torch.cuda.synchronize()": "synchronize",
        "x.to(self._device)": "to",
        "x.to('cuda', non_blocking=True)": "to",
        "torch.tensor([1], device=x.device)": "tensor",
        "torch.empty(3, pin_memory=True)": "pin_memory",
    }
    assert {source: found_in(source) for source in wrong} == {source: {word} for source, word in wrong.items()}
    right = "x.to(torch.float32); np.nonzero(y); torch.zeros(3, device=d); torch.tensor([1]); Routing.to"
    assert found_in(right) == set()
