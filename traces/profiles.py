"""Cost profiles by name (those in the box) or by file."""

import re
from pathlib import Path

from .costs import CostProfile
from .errors import TraceError
from .profile_file import load_profile_file

_DATA = Path(__file__).parent / "data"
_PREFIX = "profile-"


def profile_names() -> tuple[str, ...]:
    """Names of the profiles in the box."""
    return tuple(sorted(path.stem.removeprefix(_PREFIX) for path in _DATA.glob(f"{_PREFIX}*.json")))


def load_profile(name_or_path: Path | str) -> CostProfile:
    """A profile from the box by its name, or from a file. Raises TraceError where there is neither."""
    text = str(name_or_path)
    if re.fullmatch(r"[\w.-]+", text) and text in profile_names():
        return load_profile_file(_DATA / f"{_PREFIX}{text}.json")
    if not Path(text).is_file():
        raise TraceError(
            f"profile '{text}' is neither a file nor in the box, which holds {', '.join(profile_names()) or 'none'}"
        )
    return load_profile_file(text)
