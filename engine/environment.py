"""What a run is asked for by environment variables of its own."""

import os
from collections.abc import Sequence

from ..traces.errors import InputError


def asked_by(variable: str, choices: Sequence[str]) -> str | None:
    """One of the choices; None where the variable is not set. Raises InputError for another word."""
    word = os.environ.get(variable)
    if word is not None and word not in choices:
        raise InputError(f"{variable}={word} is unknown; choose from {', '.join(choices)}, or leave it out")
    return word
