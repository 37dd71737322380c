"""Which GPUs a question is about: what its options say, and this machine's where they leave that open."""

from collections.abc import Callable
from dataclasses import dataclass

from ..planner.gpus import Gpus, one_gpu_each
from ..planner.inputs.loaded_jobs import JobSettings
from ..traces.costs import CostProfile
from .errors import SimulationError


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedGpus:
    """--gpus and --device-memory; None where the user said nothing. Raises SimulationError for memory not above 0."""

    num_gpus: int | None = None
    device_gib: float | None = None
    """Memory of each."""
    machine: Callable[[], Gpus | None] = lambda: None
    """Tells this machine's GPUs, None without any. Asked only where it matters, since it imports torch for that."""

    def __post_init__(self) -> None:
        if self.device_gib is not None and not self.device_gib > 0:
            raise SimulationError(f"--device-memory {self.device_gib} must be above 0 GiB; raise it")

    def for_workers(self, profile: CostProfile | None) -> Gpus | None:
        """For a run whose stages and replicas are settled: this machine's, unless anything is said of others.

        None leaves it to the profile: one such GPU a worker.
        """
        if self.device_gib is None and self.num_gpus is None:
            return self.machine()
        each_bytes = self._device_bytes()
        if each_bytes is None:
            each_bytes = float("inf") if profile is None else profile.memory.capacity_bytes
        if self.num_gpus is None:
            return one_gpu_each(each_bytes)
        return Gpus(free_bytes=(each_bytes,) * self.num_gpus)

    def to_lay_on(self, settings: JobSettings, profile: CostProfile) -> Gpus:
        """For a search over stages and replicas: what is not said is this machine's, else job file's and profile's."""
        count, each_bytes = self.num_gpus, self._device_bytes()
        machine = self.machine() if count is None or each_bytes is None else None
        if count is None and each_bytes is None and machine is not None:
            return machine
        if count is None:
            count = len(machine.free_bytes) if machine is not None else settings.num_stages * settings.num_replicas
        if each_bytes is None:
            each_bytes = min(machine.free_bytes) if machine is not None else profile.memory.capacity_bytes
        return Gpus(free_bytes=(each_bytes,) * count)

    def _device_bytes(self) -> float | None:
        return None if self.device_gib is None else self.device_gib * 2**30
