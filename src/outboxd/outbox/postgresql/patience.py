"""A server that hangs: it keeps its connections and says nothing (its disk answers no
more, its host is frozen, an old primary lives on behind a proxy).

That is told from a wait by another connection: a server that is only busy, or keeps
somebody waiting for a lock or a standby, answers that one. Nothing here cancels anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from outboxd.errors import OutboxUnreachable
from outboxd.outbox.postgresql.connection import answers
from outboxd.outbox.postgresql.link import RETRY_AFTER_S, Link

T = TypeVar("T")

# What has not been answered after so long is asked about on another connection.
HANGS_S = 5.0


def hangs() -> OutboxUnreachable:
    """What is said of it."""
    return OutboxUnreachable(
        f"the outbox's database has not answered for {HANGS_S:g} s",
        "events are refused until it does; is its disk away, or its synchronous standby?",
        RETRY_AFTER_S,
    )


def in_time(work: Callable[[], T], url: str, password: str | None, told: Callable[[], None]) -> T:
    """Do it, while there is no connection yet that could be cut; `told` hears, once, that
    it takes long.

    Raises OutboxUnreachable where the server hangs; the work is left to the process's end.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="outbox-opening", daemon=True)
    thread.start()
    thread.join(HANGS_S)
    if thread.is_alive():
        told()
    while thread.is_alive():
        if not answers(url, password) and thread.is_alive():
            raise hangs()
        thread.join(HANGS_S)
    for failure in failures:
        raise failure
    return results[0]


@contextmanager
def cutting(links: Sequence[Link]) -> Iterator[None]:
    """Within, who waits on one of them for a server that hangs hears that it is gone."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(HANGS_S):
            if not links[0].is_answered() and not ended.is_set():
                for link in links:
                    link.cut()

    threading.Thread(target=watch, name="outbox-patience", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class Leaving:
    """Leaves a server that hangs where another answers in its place (a standby that was
    promoted); at most one look at a time, in the background."""

    def __init__(self) -> None:
        self._looking: threading.Thread | None = None

    def look(self, links: Sequence[Link]) -> None:
        """They are to a server that one of them has waited for longer than it should."""
        if self._looking is None or not self._looking.is_alive():
            self._looking = threading.Thread(
                target=self._look, args=(links,), name="outbox-leaving", daemon=True
            )
            self._looking.start()

    def _look(self, links: Sequence[Link]) -> None:
        if links[0].is_answered():
            for link in links:
                link.cut()
