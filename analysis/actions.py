"""Reading a Timeline's words: `0F3` is the Forward of microbatch 3, `1S2.5` the Step of adapter 2, batch 5."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NAMES = {
    "F": "forward",
    "B": "backward",
    "I": "backward, inputs",
    "W": "backward, weights",
    "R": "reduce",
    "S": "step",
    "E": "evaluate",
}
"""What each letter of an action stands for, in reading order."""
FORWARDS = ("F",)
BACKWARDS = ("B", "I", "W")
EVALUATION = "E"
OTHERS = ("R", EVALUATION)
"""What is neither a pass that trains nor a step: the sums over replicas, and forwards that only measure."""
BUSY = (*FORWARDS, *BACKWARDS, "S")
"""The actions whose compute counts as busy: Forward, Backward (whole or split) and Step."""


def letters(actions: pd.Series) -> NDArray[np.str_]:
    """The letter of each action; '' where a word has none."""
    if not len(actions):
        return np.empty(0, dtype="U1")
    # A million words are normal: look at all characters at once instead of matching each word.
    words = np.array(actions.tolist(), dtype="U")
    characters = words.view("U1").reshape(len(words), -1)
    is_letter = np.char.isalpha(characters)
    found = characters[np.arange(len(words)), is_letter.argmax(axis=1)]
    return np.where(is_letter.any(axis=1), found, "")


def step_targets(actions: pd.Series) -> pd.DataFrame:
    """Adapter and global batch of Step and Reduce words (`1S2.5`), in columns of those names, by the same index."""
    parts = actions.str.extract(r"^\d+[RS](?P<adapter>\d+)\.(?P<global_batch>\d+)$")
    return parts.astype("int64")
