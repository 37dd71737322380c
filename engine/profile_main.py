"""`python -m loraplex.engine.profile_main`: one process of `loraplex profile`, which imports torch under guard.

A Ctrl-C in the seconds that the import takes ends it in one line, like one later.
"""

import os

from .ending import ends_process


def main() -> None:
    """Measure, and end the process, whose transport's threads may outlive the work."""
    with ends_process():
        from .profile_worker import main as measure

        measure()
    os._exit(0)


if __name__ == "__main__":
    main()
