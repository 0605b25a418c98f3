"""Fixtures that the tests of intake and spool share."""

from support.intake import event, intake, line

__all__ = ["event", "intake", "line"]
