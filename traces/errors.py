"""The one error that bad traces raise."""


class TraceError(ValueError):
    """A cost profile, timeline or length table breaks a rule. The message gives value, rule and mend."""
