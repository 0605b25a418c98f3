"""`python -m outboxd` is the command `outboxd`."""

from __future__ import annotations

import sys

from outboxd.cli.main import main

sys.exit(main())
