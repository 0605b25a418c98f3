"""The outbox in a PostgreSQL database that other gateways use as well.

Synchronous and single-threaded: see `outbox.engine.Engine` for what each verb does.
Every gateway accepts; only the holder of the lease settles and records what is in
flight, and the row of the lease is the fence: a turn of a former holder changes nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg.pq import TransactionStatus
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from outboxd.clock import Clock, CorrectedClock
from outboxd.errors import (
    CommitUnknown,
    LeaseLost,
    OutboxdError,
    OutboxUnreachable,
    OutboxUnusable,
    no_entry,
)
from outboxd.outbox.identities import key_identities, repeat_identity
from outboxd.outbox.mentions import Text, Texts
from outboxd.outbox.model import (
    UNBOUNDED,
    Attempt,
    ChangeStep,
    Counts,
    Damage,
    DestinationHold,
    Entry,
    EntryChange,
    EntryFilter,
    Expired,
    Fetched,
    Identity,
    Incoming,
    IndexRow,
    ListPlace,
    ListStep,
    MoveNote,
    Place,
    PruneStep,
    Receipt,
    Settlement,
    Sizes,
    SpoolMark,
    State,
    Unsettled,
)
from outboxd.outbox.postgresql import accepting, carrying, claiming, listing
from outboxd.outbox.postgresql.claiming import DUE
from outboxd.outbox.postgresql.connection import (
    check_promises,
    connect,
    migrate,
    translate,
)
from outboxd.outbox.postgresql.cursor import Cursor
from outboxd.outbox.postgresql.lease import Lease
from outboxd.outbox.postgresql.tallies import Changes, Tallies
from outboxd.outbox.window_clock import WindowClock

RETRY_AFTER_S = 5
RECONNECT_S = 1.0  # of waiting within one piece of work; the next tries again
ATTEMPTS_KEPT = 50
UNCOUNTED_LOOK_S = 5.0
_NOW_MS = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
# A lease that would run for so much longer than one lasts was written by another clock: a
# server was promoted whose clock is behind.
_CLOCKS_DIFFER_S = 60.0

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


class _Doubt(NamedTuple):
    """A commit whose end was not seen, by what tells whether it was made."""

    lease: Lease  # as it is if it was
    settlements: Sequence[Settlement]


class LookAround(NamedTuple):
    """What the gateways share, at one moment."""

    hold: DestinationHold | None  # the operator's
    changes: int  # how often an operator has changed entries, at any gateway
    releases: int  # how often one has ended every wait, where nothing is delivered
    accepted: int  # how many events were ever accepted
    deliverer: str | None  # the gateway that has the lease; None: nobody
    lease_left_s: float | None  # of it, by the database's clock; below 0: it has ended
    told: str | None  # how the destination stands to it


class PostgresEngine:
    """One gateway's connection to the outbox. Not for several threads at once."""

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        key_window_s: float = 7 * 86400,
        repeat_window_s: float = 0,
        *,
        gateway: str = "gateway",
        destination: str = "komodor",
        durability: str = "local",
        lease_s: float = 15.0,
        password: str | None = None,
        beside: PostgresEngine | None = None,
        claims: bool = False,
    ) -> None:
        """Connect, check what the server promises, migrate.

        `gateway`: the host, and behind a space what tells this connection from all
        others there.

        Another connection of the same gateway, `beside` its first one, shares its
        counts and finds the rest done.

        Raises:
            OutboxUnusable, OutboxUnreachable
        """
        self.path = named(url)
        self.clock = clock or Clock()
        self.lease: Lease | None = None  # within a transaction as it will be
        # As the database has it for certain: a renewal whose commit hangs is none yet.
        self.proven: Lease | None = None
        self.lease_s = lease_s
        self._url, self._password = url, password
        self._claims = claims  # what is read here is what may be sent
        self.gateway, self._destination = gateway, destination
        self._durability = durability
        self._in_commit = False
        self._warning = ""  # of the server's, during a commit
        self.stored_bytes = 0
        self.standby_lag_s: float | None = None
        self._uncounted_look_s = 0.0
        self._tallies: Tallies = Tallies() if beside is None else beside._tallies
        self._changes = Changes()
        self._cursor = Cursor(self.clock)
        self._settling: list[Settlement] = []  # in this transaction
        self._doubt: _Doubt | None = None
        try:
            self._connect()
        except psycopg.Error as error:
            raise translate(error) from error
        # Once the clock is the server's: that is no step of it.
        self._key_clock = WindowClock(self.clock, round(key_window_s * 1000))
        self.set_windows(key_window_s, repeat_window_s)
        if beside is not None:
            return
        try:
            with self.reading():
                migrate(self.connection)
                self._tallies.load(self.connection)
        except BaseException:
            self.connection.close()
            raise

    def _connect(self) -> None:
        """Raises psycopg.Error, and OutboxUnusable where a receipt could not be kept."""
        self.connection = connect(self._url, self._password)
        self.connection.add_notice_handler(self._noticed)
        try:
            check_promises(self.connection, self._durability)
            if isinstance(self.clock, CorrectedClock):
                self.clock.correct(int(self._one(f"SELECT {_NOW_MS}")))
        except BaseException:
            self.connection.close()
            raise

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        if self._in_commit and notice.severity_nonlocalized == "WARNING":
            self._warning = notice.message_primary or "a warning"

    def beside(self, name: str, *, claims: bool = False) -> PostgresEngine:
        """Another connection of this gateway, for other work at the same time.

        Raises:
            OutboxUnreachable
        """
        return PostgresEngine(
            self._url,
            self.clock,
            self._key_window_ms / 1000,
            self._repeat_window_ms / 1000,
            gateway=f"{self.gateway} {name}",
            destination=self._destination,
            durability=self._durability,
            lease_s=self.lease_s,
            password=self._password,
            beside=self,
            claims=claims,
        )

    # --- running ---

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._connected()
        self._changes, self._settling = Changes(), []
        lease = self.lease
        try:
            self.connection.execute(_BEGIN + _BY_INDEX)
            yield
            self._changes.write(self.connection, self.gateway)
            self._in_commit, self._warning = True, ""
            self.connection.execute("COMMIT")
            if self._warning:
                # Somebody has cancelled it while it waited for its standby: it is there,
                # and may not be replicated.
                raise CommitUnknown(
                    f"the server warned of a commit: {self._warning}",
                    "nothing to do: whoever waits asks again with the same key",
                )
        except psycopg.Error as error:
            failure = translate(error, self._in_commit)
            self._roll_back(lease, is_gone=isinstance(failure, OutboxUnreachable))
            raise failure from error
        except BaseException:
            self._roll_back(lease)
            raise
        finally:
            self._in_commit = False
        self.proven = self.lease
        self._tallies.add(self._changes)

    def _roll_back(self, lease: Lease | None, is_gone: bool = False) -> None:
        if self._in_commit and self._settling and lease is not None and self.lease != lease:
            assert self.lease is not None
            self._doubt = _Doubt(self.lease, self._settling)
        if self.lease is not None:
            # After a commit of which nobody knows, too: the database says with the next
            # renewal which turn it is.
            self.lease = lease
        else:
            self.proven = None
        if self._in_commit or is_gone:
            # Whatever became of it: this connection says nothing more about it. One to
            # a server that takes no writes any more leads nowhere.
            self.connection.close()
            return
        with suppress(psycopg.Error):
            self.connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._connected()
        is_idle = self.connection.info.transaction_status is TransactionStatus.IDLE
        try:
            # What the deliverer reads goes by the indexes, and its planner by the transaction.
            with self._by_index() if self._claims and is_idle else nullcontext():
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

    def _connected(self) -> None:
        """Connect anew where the connection is gone. Raises OutboxUnreachable."""
        if not self.connection.closed and not self.connection.broken:
            return
        retrying = Retrying(
            retry=retry_if_exception_type(psycopg.OperationalError),
            stop=stop_after_delay(RECONNECT_S),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            reraise=True,
        )
        try:
            retrying(self._connect)
            self._tallies.load(self.connection)
        except psycopg.Error as error:
            raise translate(error) from error
        except OutboxUnusable as error:  # another server than at the start, or changed
            raise OutboxUnreachable(error.message, error.hint, RETRY_AFTER_S) from error

    def close(self) -> None:
        """Give the lease up, so that another need not wait for its end, and disconnect."""
        if self.lease is not None and not self.connection.closed:
            with suppress(OutboxdError, psycopg.Error):
                self.give_up_lease()
        self.connection.close()

    def set_windows(self, key_window_s: float, repeat_window_s: float) -> None:
        self._key_window_ms = round(key_window_s * 1000)
        self._key_clock.window_ms = self._key_window_ms
        self._repeat_window_ms = round(repeat_window_s * 1000)

    def tidy(self) -> None:
        """Vacuum is the server's."""

    def make_room(self) -> bool:
        return False

    def note_fatal(self, error: OutboxdError) -> None:
        """The database keeps what a next start should know."""

    def sizes(self) -> Sizes:
        return Sizes(self.stored_bytes, 0, UNBOUNDED)

    def measure(self) -> None:
        """Look how much room the tables take, for `sizes`, and how far standbys are
        behind (which the server shows to members of pg_monitor alone)."""
        self.standby_lag_s = self._one(
            "SELECT extract(epoch FROM max(replay_lag))::float8 FROM pg_stat_replication"
        )
        names = ["entries", "states", "dedup", "tallies", "deliverers"]
        self.stored_bytes = int(
            self._one(
                "SELECT sum(pg_total_relation_size(to_regclass(n))) FROM unnest(%s::text[]) n",
                (names,),
            )
        )

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The only value of a query that always has a row."""
        row = self.connection.execute(sql, values).fetchone()
        assert row is not None
        (value,) = row
        return value

    # --- the lease ---

    def take_lease(self) -> bool:
        """Become the deliverer if nobody is, or its lease has ended; whether it is us.
        In a transaction or by itself."""
        self._connected()
        if self.connection.info.transaction_status is not TransactionStatus.IDLE:
            return self._take_lease()
        with self.transaction():
            return self._take_lease()

    def _take_lease(self) -> bool:
        asked_at_s = self.clock.since_boot_s()
        holder = str(uuid.uuid4())
        row = self.connection.execute(
            "INSERT INTO deliverers AS d"
            " (destination, holder, gateway, turn, lease_ends_at, sending)"
            " VALUES (%(d)s, %(h)s, %(g)s, 1,"
            " clock_timestamp() + %(l)s * interval '1 second', '{}')"
            " ON CONFLICT (destination) DO UPDATE SET holder = %(h)s, gateway = %(g)s,"
            " turn = d.turn + 1,"
            " lease_ends_at = clock_timestamp() + %(l)s * interval '1 second'"
            " WHERE d.holder IS NULL OR d.lease_ends_at < clock_timestamp()"
            " OR d.lease_ends_at > clock_timestamp() + %(b)s * interval '1 second'"
            " RETURNING turn",
            {
                "d": self._destination,
                "h": holder,
                "g": self.gateway.partition(" ")[0],
                "l": self.lease_s,
                "b": 2 * self.lease_s + _CLOCKS_DIFFER_S,
            },
        ).fetchone()
        if row is None:
            return False
        (turn,) = row
        self.lease = Lease(holder, turn, asked_at_s, self.lease_s)
        self._doubt = None
        self._cursor.reset()
        return True

    def look_from_start(self) -> None:
        """Others have changed entries: some may wait again that were passed. From any thread."""
        self._cursor.reset()

    def renew_lease(self, told: str | None = None) -> None:
        """Go on delivering; what is in flight stays as it is. `told`: how the destination
        stands, for the other gateways. Raises LeaseLost."""
        self._renew("told = %s,", (told,))

    def give_up_lease(self) -> None:
        """Let another deliver at once."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self.connection.execute(
                "UPDATE deliverers SET holder = NULL WHERE destination = %s AND holder = %s",
                (self._destination, lease.holder),
            )

    def set_sending(self, seqs: Collection[int]) -> None:
        self._renew("sending = %s,", (list(seqs),))

    def _renew(self, more: str, values: tuple[object, ...]) -> None:
        """One statement that renews and is the fence: it changes nothing for a former holder."""
        lease = self.lease
        asked_at_s = self.clock.since_boot_s()
        row = None
        if lease is not None:
            row = self.connection.execute(
                f"UPDATE deliverers SET {more} turn = turn + 1,"
                " lease_ends_at = clock_timestamp() + %s * interval '1 second'"
                " WHERE destination = %s AND holder = %s RETURNING turn",
                (*values, self.lease_s, self._destination, lease.holder),
            ).fetchone()
        if lease is None or row is None:
            self.lease = None
            raise LeaseLost(
                "another gateway delivers now", "nothing to do: this one goes on taking events"
            )
        (turn,) = row
        if turn <= lease.turn:
            self.lease = None
            raise LeaseLost(
                "the database is one that lacks what this gateway had written there",
                "a standby was promoted that was behind; the lease is taken anew",
            )
        self.lease = lease.renewed(turn, asked_at_s)

    def recover_sending(self) -> int:
        """What the holder before had in flight may have arrived; the new one says so."""
        if self.lease is None:
            return 0
        found = self.connection.execute(
            "WITH d AS (UPDATE deliverers SET sending = '{}' WHERE destination = %(d)s"
            " AND holder = %(h)s"
            " RETURNING (SELECT sending FROM deliverers WHERE destination = %(d)s) AS sending)"
            " UPDATE states SET possible_duplicate = true WHERE state = 'pending'"
            " AND seq = ANY((SELECT sending FROM d)::bigint[])",
            {"d": self._destination, "h": self.lease.holder},
        )
        return found.rowcount

    def look_around(self) -> LookAround:
        """What the gateways share; the counts of all are known from then on, and what
        the server's clock shows.

        Raises:
            OutboxUnusable: the server does not keep the promise any more.
        """
        check_promises(self.connection, self._durability)
        self._tallies.load(self.connection)
        self._look_for_uncounted()
        row = self.connection.execute(
            f"SELECT {_NOW_MS}, hold, changes, releases, told,"
            " CASE WHEN holder IS NOT NULL THEN gateway END, CASE WHEN holder IS NOT NULL THEN"
            " extract(epoch FROM lease_ends_at - clock_timestamp())::float8 END"
            " FROM (SELECT 1) one LEFT JOIN deliverers ON destination = %s",
            (self._destination,),
        ).fetchone()
        assert row is not None
        now, hold, changes, releases, told, gateway, left_s = row
        if isinstance(self.clock, CorrectedClock):
            self.clock.correct(now)
        if left_s is not None and left_s > 2 * self.lease_s + _CLOCKS_DIFFER_S:
            left_s = 0.0
        return LookAround(
            _hold(hold), changes or 0, releases or 0, self._tallies.accepted, gateway, left_s, told
        )

    def _look_for_uncounted(self) -> None:
        """Nothing is sent while nothing seems to wait: that must not rest on counts alone."""
        if self.clock.monotonic_s() < self._uncounted_look_s:
            return
        self._uncounted_look_s = self.clock.monotonic_s() + UNCOUNTED_LOOK_S
        self._tallies.has_pending = False
        if not self._tallies.counts().pending:
            self._tallies.has_pending = self._one(
                f"SELECT EXISTS (SELECT 1 FROM states WHERE {DUE})"
            )

    def _operator_acted(self) -> None:
        """Tell the other gateways: the deliverer may have read ahead what is held now."""
        self.connection.execute(
            "INSERT INTO deliverers (destination, turn, sending, changes) VALUES (%s, 0, '{}', 1)"
            " ON CONFLICT (destination) DO UPDATE SET changes = deliverers.changes + 1",
            (self._destination,),
        )

    # --- changing ---

    def accept(self, items: Sequence[Incoming]) -> list[Receipt]:
        receipts, kept = accepting.accept(
            self.connection,
            items,
            self._key_window_ms,
            self._repeat_window_ms,
            self.clock.wall_ms(),
            self._key_clock.now_ms(),
        )
        for item in kept:
            self._changes.accept(item.producer)
        return receipts

    def mark_spool(self, mark: SpoolMark) -> None:
        raise AssertionError("a gateway on PostgreSQL has no spool")

    def forget_spool(self, file_keys: Sequence[str]) -> None:
        raise AssertionError("a gateway on PostgreSQL has no spool")

    def settle(self, settlements: Sequence[Settlement]) -> None:
        if self._doubt is not None:
            settlements = self._without_settled(settlements)
        self._settling += settlements
        self._cursor.may_wait_again(settlements)
        rows = [
            {
                "seq": each.seq,
                "state": each.state,
                "attempt": _legible(each.attempt),
                "due_at": each.due_at,
                "spent": each.spent,
                "doubtful": each.possible_duplicate,
                "dead_reason": each.dead_reason,
                "revives": each.revives,
            }
            for each in settlements
        ]
        changed = self.connection.execute(
            "WITH v AS (SELECT * FROM json_to_recordset(%(rows)s) AS v (seq bigint, state text,"
            " attempt jsonb, due_at bigint, spent int, doubtful boolean, dead_reason text,"
            " revives boolean)), before AS (SELECT s.seq, s.state, s.held, s.attempts FROM states s"
            " JOIN v USING (seq) WHERE s.state = 'pending'"
            " OR (v.revives AND s.dead_reason = 'rejected') ORDER BY s.seq FOR UPDATE OF s)"
            " UPDATE states s SET state = v.state,"
            " held = b.held AND v.state = 'pending',"
            " due_at = CASE WHEN v.state = 'pending' THEN v.due_at ELSE 0 END,"
            " ended_at = CASE WHEN v.state = 'pending' THEN NULL ELSE %(now)s::bigint END,"
            " attempt_count = s.attempt_count + (v.attempt IS NOT NULL)::int,"
            " spent = s.spent + v.spent,"
            " possible_duplicate = s.possible_duplicate OR v.doubtful,"
            " dead_reason = v.dead_reason,"
            " attempts = CASE WHEN v.attempt IS NULL THEN s.attempts ELSE (CASE WHEN"
            " jsonb_array_length(s.attempts) >= %(kept)s THEN s.attempts - 0 ELSE s.attempts END)"
            " || jsonb_build_array(v.attempt) END"
            " FROM v, before b WHERE s.seq = v.seq AND b.seq = v.seq"
            " RETURNING s.producer, b.state, b.held, s.state, s.held",
            {"rows": json.dumps(rows), "now": self.clock.wall_ms(), "kept": ATTEMPTS_KEPT},
        ).fetchall()
        self._moved(changed)

    def _without_settled(self, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
        """The connection ended while these were committed. The turn tells whether they
        were: so no attempt counts twice. Waits for that commit, should it go on."""
        doubt, self._doubt = self._doubt, None
        assert doubt is not None
        row = self.connection.execute(
            "SELECT turn FROM deliverers WHERE destination = %s AND holder = %s FOR UPDATE",
            (self._destination, doubt.lease.holder),
        ).fetchone()
        if row is None or row[0] < doubt.lease.turn:
            return settlements
        done = set(doubt.settlements)
        return [each for each in settlements if each not in done]

    def change(self, change: EntryChange, id: str) -> Entry:
        entry = self.get(id)
        if change is EntryChange.DROP:
            self._drop(entry)
            self._operator_acted()
            return entry
        if change is EntryChange.RETRY:
            self._retry([entry.seq])
        elif entry.state == State.PENDING:
            self._moved(
                self.connection.execute(
                    "WITH before AS (SELECT seq, state, held FROM states WHERE seq = %s"
                    " AND state = 'pending' FOR UPDATE)"
                    " UPDATE states s SET held = %s FROM before b WHERE s.seq = b.seq"
                    " RETURNING s.producer, b.state, b.held, s.state, s.held",
                    (entry.seq, change is EntryChange.HOLD),
                ).fetchall()
            )
        self._operator_acted()
        return self.get(id)

    def change_dead(
        self, change: EntryChange, where: EntryFilter, place: ListPlace, limit: int
    ) -> ChangeStep:
        dead = where._replace(states=(State.DEAD.value,))
        step = self.list_step(dead, place, limit, 1 << 40, False)
        if change is EntryChange.RETRY:
            self._retry([entry.seq for entry in step.entries])
        else:
            for entry in step.entries:
                self._drop(entry)
        if step.entries:
            self._operator_acted()
        return ChangeStep(step.place, len(step.entries))

    def _retry(self, seqs: Sequence[int]) -> None:
        changed = self.connection.execute(
            # As they are once nobody else can change them: the counts must agree.
            "WITH before AS (SELECT seq, state, held FROM states WHERE seq = ANY(%s)"
            " AND state <> 'delivered' ORDER BY seq FOR UPDATE)"
            " UPDATE states s SET state = 'pending', dead_reason = NULL, ended_at = NULL,"
            " due_at = 0, spent = 0,"
            " expires_at = CASE WHEN b.state = 'dead' THEN NULL ELSE s.expires_at END"
            " FROM before b WHERE s.seq = b.seq"
            " RETURNING s.producer, b.state, b.held, s.state, s.held",
            (list(seqs),),
        ).fetchall()
        self._moved(changed)

    def _drop(self, entry: Entry) -> None:
        own = [repeat_identity(entry.producer, entry.body)]
        if entry.dedup_key is not None:
            own += key_identities(entry.producer, entry.dedup_key)
        self.connection.execute(
            "DELETE FROM dedup WHERE key = ANY(%s) AND id = %s", (own, entry.id)
        )
        gone = self.connection.execute(
            "DELETE FROM states WHERE seq = %s RETURNING producer, state, held", (entry.seq,)
        ).fetchall()
        self.connection.execute("DELETE FROM entries WHERE seq = %s", (entry.seq,))
        for producer, state, held in gone:  # as it was then, and not when it was read
            self._changes.count(producer, state, held, -1)

    def set_destination_hold(self, hold: DestinationHold | None) -> None:
        value = None if hold is None else msgspec.json.encode(hold).decode()
        self.connection.execute(
            "INSERT INTO deliverers (destination, turn, sending, hold) VALUES (%s, 0, '{}', %s)"
            " ON CONFLICT (destination) DO UPDATE SET hold = excluded.hold",
            (self._destination, value),
        )

    def tell_release(self) -> None:
        """An operator ends every wait of the destination; the deliverer hears of it."""
        self.connection.execute(
            "INSERT INTO deliverers (destination, turn, sending, releases) VALUES (%s, 0, '{}', 1)"
            " ON CONFLICT (destination) DO UPDATE SET releases = deliverers.releases + 1",
            (self._destination,),
        )

    def set_aside_damaged(self, seq: int, detail: str) -> None:
        raise AssertionError("what the server's checksums find is the server's to tell")

    def prune(self, after_seq: int, window: int, ended_before: int) -> PruneStep:
        """By the time of their end, and not by seq: `after_seq` only says to go on."""
        deleted = self.connection.execute(
            "WITH gone AS (DELETE FROM states WHERE seq IN (SELECT seq FROM states"
            " WHERE state = 'delivered' AND ended_at < %s ORDER BY ended_at LIMIT %s"
            " FOR UPDATE SKIP LOCKED) RETURNING seq, producer),"
            " bodies AS (DELETE FROM entries WHERE seq IN (SELECT seq FROM gone))"
            " SELECT producer, count(*) FROM gone GROUP BY producer",
            (ended_before, window),
        ).fetchall()
        count = 0
        for producer, some in deleted:
            self._changes.count(producer, State.DELIVERED, False, -some)
            count += some
        return PruneStep(after_seq + 1 if count == window else None, count)

    def prune_dedup(self, limit: int) -> int:
        return self.connection.execute(
            "DELETE FROM dedup WHERE key IN (SELECT key FROM dedup WHERE expires_at <= %s"
            " ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED)",
            (self._key_clock.now_ms(), limit),
        ).rowcount

    # --- counting ---

    def _moved(self, rows: Sequence[tuple[str, str, bool, str, bool]]) -> None:
        for producer, before, was_held, after, is_held in rows:
            self._changes.count(producer, before, was_held, -1)
            self._changes.count(producer, after, is_held, +1)

    def counts(self) -> Counts:
        return self._tallies.counts()

    def waiting(self) -> Mapping[str, int]:
        return self._tallies.waiting()

    # --- reading ---

    def damage(self) -> Damage:
        return Damage(0, 0)

    def destination_hold(self) -> DestinationHold | None:
        row = self.connection.execute(
            "SELECT hold FROM deliverers WHERE destination = %s AND hold IS NOT NULL",
            (self._destination,),
        ).fetchone()
        return None if row is None else _hold(row[0])

    def spool_progress(self) -> dict[str, int]:
        return {}

    def fetch(
        self,
        count: int,
        taken: Collection[int],
        order: str,
        fresh_share: float,
        due_horizon_s: float,
    ) -> Fetched:
        now = self.clock.wall_ms()
        horizon = now + round(due_horizon_s * 1000)
        look = claiming.Look(self.connection, self._cursor, taken, now, horizon)
        seqs = look.fifo(count) if order == "fifo" else look.mixed(count, fresh_share)
        return look.fetched(seqs, count)

    def expired(self, limit: int, clock_steps: Sequence[tuple[int, int]] = ()) -> Expired:
        now = self.clock.wall_ms()
        cases = "".join(
            f" WHEN e.received_at <= {until:d} THEN {ms:d}" for until, ms in clock_steps
        )
        longer = f"CASE{cases} ELSE 0 END" if cases else "0"
        found = self.connection.execute(
            "SELECT s.seq, e.id::text FROM states s JOIN entries e USING (seq)"
            " WHERE s.state = 'pending' AND s.expires_at <= %(now)s"
            f" AND s.expires_at + {longer} <= %(now)s LIMIT %(limit)s",
            {"now": now, "limit": limit},
        ).fetchall()
        next_at = self._one(
            "SELECT min(expires_at) FROM states WHERE state = 'pending' AND expires_at > %s", (now,)
        )
        return Expired(found, next_at)

    def get(self, id: str) -> Entry:
        try:
            wanted = uuid.UUID(id)
        except ValueError:
            raise no_entry(id) from None
        row = self.connection.execute(f"{listing.ENTRY} WHERE e.id = %s", (wanted,)).fetchone()
        if row is None:
            raise no_entry(id)
        return _entry(row)

    def state_of_key(self, producer: str, dedup_key: str) -> str | None:
        key, *_ = key_identities(producer, dedup_key)
        row = self.connection.execute(
            "SELECT coalesce(s.state, 'delivered') FROM dedup d LEFT JOIN states s USING (seq)"
            " WHERE d.key = %s AND d.expires_at > %s",
            (key, self._key_clock.now_ms()),
        ).fetchone()
        return None if row is None else str(row[0])

    def list_step(
        self, where: EntryFilter, place: ListPlace, limit: int, bytes_max: int, is_begun: bool
    ) -> ListStep:
        return listing.step(self.connection, where, place, limit, bytes_max, is_begun, _entry)

    def entries_of(self, where: EntryFilter, seqs: Sequence[int]) -> list[Entry]:
        return listing.entries_of(self.connection, where, seqs, _entry)

    def last_dead_at(self) -> int | None:
        at: int | None = self._one(
            "SELECT max(ended_at) FROM (SELECT ended_at FROM states WHERE state = 'dead'"
            " ORDER BY seq DESC LIMIT 1000) few"
        )
        return at

    def seq_range(self) -> range:
        return listing.seq_range(self.connection)

    def index_rows(self, seqs: range) -> list[IndexRow]:
        return listing.index_rows(self.connection, seqs)

    def unsettled(self, kind: Unsettled, after: Place, limit: int) -> list[Place]:
        return listing.unsettled(self.connection, kind, after, limit)

    def rows_by_block(self, block_rows: int, seqs: range) -> dict[int, int]:
        return listing.rows_by_block(self.connection, block_rows, seqs)

    def texts(self, seqs: range, wanted: Texts) -> list[tuple[int, Text]]:
        return listing.texts(self.connection, seqs)

    def oldest_pending_at(self, *, with_held: bool = True) -> int | None:
        held = " UNION ALL (SELECT seq FROM states WHERE held ORDER BY seq LIMIT 1)"
        at: int | None = self._one(
            "SELECT min(e.received_at) FROM entries e WHERE e.seq IN ("
            f"(SELECT seq FROM states WHERE {DUE} AND due_at = 0 ORDER BY seq LIMIT 1)"
            f" UNION ALL (SELECT seq FROM states WHERE {DUE} AND due_at > 0 LIMIT 1000)"
            f"{held if with_held else ''})"
        )
        return at

    def own_reports_pending(self) -> int:
        return int(
            self._one(
                "SELECT count(*) FROM states s JOIN entries e USING (seq)"
                f" WHERE s.{DUE.replace(' AND NOT ', ' AND NOT s.')} AND e.source = 'agent'"
            )
        )

    # --- for a move ---

    def refuse_in_use(self) -> None:
        """Raises OutboxLocked where a gateway has this database."""
        with self.reading():
            carrying.refuse_in_use(self.connection)

    def move_note(self) -> MoveNote | None:
        return carrying.move_note(self.connection)

    def set_move_note(self, note: MoveNote | None) -> None:
        carrying.set_move_note(self.connection, note)

    def entries_after(self, seq: int, limit: int, bytes_max: int) -> list[Entry]:
        return carrying.entries_after(self.connection, seq, limit, bytes_max, _entry)

    def identities_after(self, key: str, limit: int) -> list[Identity]:
        return carrying.identities_after(self.connection, key, limit)

    def put_in(self, entries: Sequence[Entry], identities: Sequence[Identity]) -> None:
        carrying.put_in(self.connection, entries, identities)
        for entry in entries:
            self._changes.count(entry.producer, entry.state, entry.held, +1)


def _hold(text: str | None) -> DestinationHold | None:
    return None if text is None else msgspec.json.decode(text, type=DestinationHold)


def _legible(attempt: Attempt | None) -> Attempt | None:
    """jsonb knows no U+0000, which an answer may hold."""
    if attempt is None or attempt.error is None:
        return attempt
    return attempt._replace(error=attempt.error.replace("\0", "\ufffd"))


def _entry(row: Sequence[Any]) -> Entry:
    *head, dead_reason, attempts, body, producer, hop = row
    last = (msgspec.json.decode(attempts) or [[None] * 5])[-1]
    _, _, outcome, status, error = last
    _, id, *_ = head
    more = (outcome, status, error, dead_reason, attempts, body.encode(), producer, hop, id[:14])
    return Entry._make((*head, *more))


def named(url: str) -> str:
    """The database in messages, without a password."""
    shown = psycopg.conninfo.conninfo_to_dict(url)
    return f"{shown.get('host', 'localhost')}/{shown.get('dbname', '')}"
