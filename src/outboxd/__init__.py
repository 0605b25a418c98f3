"""outboxd: events that must get through to Komodor's timeline."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outboxd.producer import emit as emit
    from outboxd.producer.handler import OutboxdHandler as OutboxdHandler

__version__ = "0.1.0"
__all__ = ["OutboxdHandler", "__version__", "emit"]


def __getattr__(name: str) -> object:
    # Lazily, so that `import outboxd` costs nothing to who wants a submodule,
    # and `emit` none of what logging brings.
    if name == "emit":
        from outboxd.producer import emit

        return emit
    if name == "OutboxdHandler":
        from outboxd.producer.handler import OutboxdHandler

        return OutboxdHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
