"""The one error that bad questions to the simulator raise."""

from ..traces.errors import InputError


class SimulationError(InputError):
    """A cluster, sweep or method breaks a rule. The message gives value, rule and mend."""
