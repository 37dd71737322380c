"""Errors of the planner's inputs and outputs. Every message gives the value, the rule and the mend."""

from ..traces.errors import InputError


class JobError(InputError):
    """A job file, its data or its settings break a rule."""


class PlanError(InputError):
    """A plan, a program or the request that led to it breaks a rule."""
