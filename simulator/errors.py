"""The one error that bad questions to the simulator raise."""


class SimulationError(ValueError):
    """A cluster, sweep or method breaks a rule. The message gives value, rule and mend."""
