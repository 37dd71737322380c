"""Cost profiles by name (those in the box) or by file."""

from pathlib import Path

from .costs import CostProfile
from .errors import TraceError
from .profile_file import load_profile_file

_DATA = Path(__file__).parent / "data"
_PREFIX = "profile-"


def profile_names() -> tuple[str, ...]:
    """Names of the profiles in the box."""
    return tuple(sorted(path.stem.removeprefix(_PREFIX) for path in _DATA.glob(f"{_PREFIX}*.json")))


def load_profile(name_or_path: Path | str, *, folder: Path | None = None) -> CostProfile:
    """A profile from the box by its name, or from a file, relative to `folder` (the current one by default).

    Raises TraceError where there is neither, and where a name means both.
    """
    text = str(name_or_path)
    path = Path(text) if folder is None else folder / text
    if text in profile_names():
        if path.is_file():
            raise TraceError(
                f"profile '{text}' is one in the box and a file ({path}) as well; write ./{text} for the file, or "
                "rename that for the one in the box"
            )
        return load_profile_file(_DATA / f"{_PREFIX}{text}.json")
    if not path.is_file():
        raise TraceError(
            f"profile '{path}' is neither a file nor in the box, which holds {', '.join(profile_names()) or 'none'}"
        )
    return load_profile_file(path)


def own_name(name: str) -> str:
    """The name of a profile that is measured here: one of its own where the box has one of that name already."""
    return f"{name}-own" if name in profile_names() else name
