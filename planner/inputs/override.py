"""What the command line says of the base model in place of the job file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..errors import JobError
from .read_jobfile import ReadJobFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Answers that go before the job file's own."""

    random_weights: bool = False
    """Draw weights although the file does not say so."""
    config_file: Path | None = None
    """A config.json that takes the place of `base_model`; relative to the current folder."""

    def applied(self, read: ReadJobFile) -> ReadJobFile:
        """The job file as it would read with these answers in it. Raises JobError where there is no such file."""
        changes: dict[str, object] = {"random_weights": True} if self.random_weights else {}
        if self.config_file is not None:
            if not self.config_file.expanduser().exists():
                raise JobError(f"--config {self.config_file}: is not there; give a config.json")
            changes["base_model"] = str(self.config_file.expanduser().resolve())
        return replace(read, fields=read.fields.model_copy(update=changes)) if changes else read

    def arguments(self) -> list[str]:
        """The command line that says the same."""
        words = ["--random-weights"] if self.random_weights else []
        return words if self.config_file is None else [*words, "--config", str(self.config_file)]


AS_WRITTEN: Final = Override()
"""The job file as it is."""
