"""What an adapter may be called, in a job file and on the command line alike."""

import re

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def name_fault(name: str) -> str:
    """Why no adapter can be called so; empty where one can."""
    if _NAME.fullmatch(name):
        return ""
    return (
        "a name becomes a folder: 1 to 100 letters a to z or A to Z, digits, '.', '_' and '-', not starting with '.' "
        "or '-'"
    )


def clash_fault(name: str, other: str) -> str:
    """Why an adapter cannot be called `name` beside one that is called `other`; empty where it can."""
    if name == other:
        return "another adapter has that name"
    if name.casefold() == other.casefold():
        return f"{other!r} would share its folder where upper and lower case are alike"
    return ""
