"""Files of a model on the Hugging Face hub: what its cache on this machine holds already, else a download."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import JobError

SMALL_FILES = ("*.json", "*.jinja")
"""Config, tokenizer and the index of the weights."""


def hub_folder(name: str, *, patterns: Sequence[str], is_complete: Callable[[Path], bool]) -> Path:
    """The folder of the cached snapshot of a hub id; files that match `patterns` are downloaded if it is not complete.

    A complete snapshot is taken without asking the hub, so that all processes of a run and machines without internet
    see the same files. Raises JobError where it is neither here nor to be had.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise JobError(f"{name!r} is a hub id; to look on the hub, `pip install 'loraplex[train]'`") from error
    try:
        cached = Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        cached = None
    if cached is not None and is_complete(cached):
        return cached
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        # A full disk says so in strerror; what the hub's library says fills a page.
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise JobError(
            f"{name!r} is not complete in the cache {constants.HF_HUB_CACHE} and could not be had from the hub "
            f"({why}); run `hf download {name}` where there is internet, or give the model's folder"
        ) from error
