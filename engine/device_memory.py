"""How much memory the devices of this machine have to give, asked without keeping any of it."""

import json
import subprocess
import sys
from pathlib import Path

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there where a process can reach a GPU: on Linux, and on Linux inside Windows."""


def free_device_bytes() -> float | None:
    """Free bytes of the GPU that has least of them; None without GPUs.

    Asked in a process of its own, which is gone when this returns: a CUDA context would stay in this one, and takes
    half a GiB.
    """
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return None
    asked = subprocess.run(
        [sys.executable, "-c", _QUESTION], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
    )
    if asked.returncode:
        return None
    free: list[int] = json.loads(asked.stdout)
    return float(min(free)) if free else None


_QUESTION = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([torch.cuda.mem_get_info(index)[0] for index in range(count)]))
"""
_TIMEOUT_S = 60
