"""A gateway's connection to the outbox's database: transactions on it, and a new one
where it broke.

Nothing is ever cancelled in COMMIT, and an unknown COMMIT is told from a failed one.
It must never go on with a connection of which it does not know what became of its last
commit. It knows no table.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from outboxd.clock import Clock, CorrectedClock
from outboxd.errors import CommitUnknown, OutboxUnreachable, OutboxUnusable
from outboxd.outbox.postgresql.connection import (
    answers,
    application_name,
    check_promises,
    connect,
    only_value,
    translate,
)

RETRY_AFTER_S = 5
RECONNECT_S = 1.0  # of waiting within one piece of work; the next tries again
NOW_MS = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

# A gateway that stops in the middle of a transaction (SIGSTOP, a partition) would keep
# its rows locked; the server ends that session instead. Never during COMMIT. Set in each
# transaction, because behind a pooler there is no session.
# And no timeout of the role's may cancel anything, a COMMIT least of all.
_BEGIN = (
    "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'; SET LOCAL statement_timeout = 0"
)
# Tables that grew since they were last analysed look small to the planner, which then
# reads them whole: 513 settlements a second instead of 4,183.
_BY_INDEX = "; SET LOCAL enable_hashjoin = off; SET LOCAL enable_seqscan = off"


class Link:
    """One connection at a time. Not for several threads at once."""

    def __init__(
        self,
        url: str,
        password: str | None,
        durability: str,
        clock: Clock,
        claims: bool,
        destination: str,
    ) -> None:
        """Connect, and check what the server promises. What is read over one that `claims`
        is what may be sent.

        Raises:
            OutboxUnusable, OutboxUnreachable
        """
        self._url, self._password = url, password
        self._durability, self._destination = durability, destination
        self._clock = clock
        self._claims = claims
        self.in_commit = False  # while a commit is under way, and after it where it failed
        self._warning = ""  # of the server's, during a commit
        try:
            self._connect()
        except psycopg.Error as error:
            raise translate(error) from error

    def _connect(self) -> None:
        """Raises psycopg.Error, and OutboxUnusable where a receipt could not be kept."""
        self.connection: psycopg.Connection[Any] = connect(
            self._url, self._password, application_name(self._destination)
        )
        self.connection.add_notice_handler(self._noticed)
        try:
            self.check_promises()
            if isinstance(self._clock, CorrectedClock):
                self._clock.correct(int(only_value(self.connection, f"SELECT {NOW_MS}")))
        except BaseException:
            self.connection.close()
            raise

    def check_promises(self) -> None:
        """Whether the server keeps what a receipt promises. Raises OutboxUnusable."""
        check_promises(self.connection, self._durability)

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        if self.in_commit and notice.severity_nonlocalized == "WARNING":
            self._warning = notice.message_primary or "a warning"

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open."""
        return self.connection.info.transaction_status is TransactionStatus.IDLE

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Engine.transaction`. Raises CommitUnknown where nobody knows whether it
        was made; then, and where a commit failed, it was `in_commit`."""
        self.in_commit = False
        try:
            self.connection.execute(_BEGIN + _BY_INDEX)
            yield
            self.in_commit, self._warning = True, ""
            self.connection.execute("COMMIT")
            if self._warning:
                # Somebody has cancelled it while it waited for its standby: it is there,
                # and may not be replicated.
                raise CommitUnknown(
                    f"the server warned of a commit: {self._warning}",
                    "nothing to do: whoever waits asks again with the same key",
                )
        except psycopg.Error as error:
            failure = translate(error, self.in_commit)
            self._roll_back(is_gone=isinstance(failure, OutboxUnreachable))
            raise failure from error
        except BaseException:
            self._roll_back()
            raise
        self.in_commit = False

    def _roll_back(self, is_gone: bool = False) -> None:
        if self.in_commit or is_gone:
            # Whatever became of it: this connection says nothing more about it. One to
            # a server that takes no writes any more leads nowhere.
            self.connection.close()
            return
        with suppress(psycopg.Error):
            self.connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `Engine.reading`."""
        try:
            # What the deliverer reads goes by the indexes, and its planner by the transaction.
            with self._by_index() if self._claims and self.is_idle else nullcontext():
                yield
        except psycopg.Error as error:
            failure = translate(error)
            if isinstance(failure, OutboxUnreachable):
                self.connection.close()
            raise failure from error

    @contextmanager
    def _by_index(self) -> Iterator[None]:
        self.connection.execute("BEGIN READ ONLY" + _BY_INDEX)
        try:
            yield
        finally:
            if not self.connection.closed:
                self.connection.execute("ROLLBACK")

    # --- from any thread ---

    def is_answered(self) -> bool:
        """Whether a server that takes writes answers a new connection, within seconds."""
        return answers(self._url, self._password)

    def cut(self) -> None:
        """End the connection: whoever waits on it for the server hears that it is gone. The
        server's session is cancelled in nothing, and goes on with its COMMIT.

        Should it end by itself at this moment, and its descriptor be another's by now, then
        that one ends, whose owner connects again or asks again.
        """
        with suppress(OSError, psycopg.Error):
            with socket.socket(fileno=os.dup(self.connection.fileno())) as shared:
                shared.shutdown(socket.SHUT_RDWR)

    # --- where it broke ---

    def restore(self) -> bool:
        """Connect anew where the connection is gone; whether it was. Raises
        OutboxUnreachable."""
        if not self.connection.closed and not self.connection.broken:
            return False
        retrying = Retrying(
            retry=retry_if_exception_type(psycopg.OperationalError),
            stop=stop_after_delay(RECONNECT_S),
            wait=wait_random_exponential(multiplier=0.05, max=0.25),
            reraise=True,
        )
        try:
            retrying(self._connect)
        except psycopg.Error as error:
            raise translate(error) from error
        except OutboxUnusable as error:  # another server than at the start, or changed
            raise OutboxUnreachable(error.message, error.hint, RETRY_AFTER_S) from error
        return True
