"""The errors that bad input raises. Every message gives the value, the rule and the mend."""


class InputError(ValueError):
    """Something a user gave breaks a rule: the command line prints the message alone and exits with 2."""


class TraceError(InputError):
    """A cost profile, timeline or length table breaks a rule."""
