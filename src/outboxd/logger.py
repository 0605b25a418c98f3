"""structlog, without the library that it would draw tracebacks with.

Where rich is installed, as it is for the commands that draw in a terminal, importing
structlog loads it and pygments: some 5 MiB and a fifth of an agent's start, for
tracebacks that are written plainly here (see observe/logs.py). structlog does without
where there is no rich, so for this one import there is none. Whoever logs imports it
from here.
"""

from __future__ import annotations

import sys


def _hide_rich() -> bool:
    """Whether rich is now one that cannot be imported; not where it is loaded already."""
    if "rich" in sys.modules:
        return False
    # https://docs.python.org/3/reference/import.html#the-module-cache: None is "not found".
    sys.modules["rich"] = None  # type: ignore[assignment]
    return True


_hidden = _hide_rich()
try:
    import structlog
finally:
    if _hidden:
        del sys.modules["rich"]

get_logger = structlog.get_logger

__all__ = ["get_logger", "structlog"]
