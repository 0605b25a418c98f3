"""structlog, without the libraries that it would take along where they are installed.

Importing structlog loads rich and pygments, for tracebacks that are written plainly here
(see observe/logs.py), and greenlet, for a deprecated kind of context: some 6 MiB and a
fifth of an agent's start. It does without where they are missing, so for this one import
they are. Whoever logs imports it from here.
"""

from __future__ import annotations

import sys

# rich is there for the commands that draw in a terminal.
_hidden = [name for name in ("rich", "greenlet") if name not in sys.modules]
for _name in _hidden:
    # https://docs.python.org/3/reference/import.html#the-module-cache: None is "not found".
    sys.modules[_name] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    for _name in _hidden:
        del sys.modules[_name]

get_logger = structlog.get_logger

__all__ = ["get_logger", "structlog"]
