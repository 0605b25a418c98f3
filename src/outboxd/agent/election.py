"""Which gateway delivers: takes the lease, renews it, gives it up, and hears the others.

Looks at the shared database a few times a second, because nobody tells of what other
gateways do. What a lease allows is decided in `outbox.postgresql.lease`; what is sent
and when is the sender's. It must never let the sender launch without a lease, and never
write in the name of one that was lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable

from outboxd.clock import Clock
from outboxd.delivery.sender import Sender
from outboxd.errors import CommitUnknown, LeaseLost, OutboxdError, OutboxUnreachable, Refused
from outboxd.observe.logs import get_logger
from outboxd.outbox.engine import Engine
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.postgresql.lease_row import LookAround
from outboxd.outbox.postgresql.opening import OpenedPostgres
from outboxd.outbox.postgresql.patience import HANGS_S, hangs
from outboxd.status import Deliverer, DestinationStatus, Through

LOOK_S = 0.2
# At a stop the lease is given up within so much, or it ends by itself.
GIVE_UP_S = 1.0
# How long a receipt may wait for its commit, which waits for a standby, perhaps.
COMMIT_DEADLINE_S = 10.0
RETRY_AFTER_S = 5


class Election:
    """One gateway's part in it."""

    def __init__(self, outbox: Outbox, connections: OpenedPostgres, clock: Clock) -> None:
        self._outbox = outbox
        self._connections = connections
        self._reading, self._engine = connections.reading, connections.delivering
        self._clock = clock
        self._sender: Sender | None = None
        self._on_trouble: Callable[[Refused | None], None] = lambda refusal: None
        self._is_deliverer = False
        self._stopped = False
        self._seen: LookAround | None = None
        self._seen_s = 0.0
        self._answer_s: float | None = None
        self._unled_since_s: float | None = None
        self._compared: tuple[str | None, ...] = ()
        self._shown: tuple[str | None, ...] = ()  # of the destination, to the other gateways
        self._trouble: Refused | None = None
        self._key: Callable[[], str | None] = lambda: None
        self._log = get_logger("gateway")

    def join(
        self,
        sender: Sender,
        on_trouble: Callable[[Refused | None], None],
        key: Callable[[], str | None],
    ) -> None:
        """Whom it starts and stops; who hears that the database cannot be used (None: it
        can again); and the account's key, as it is now."""
        self._sender, self._on_trouble, self._key = sender, on_trouble, key

    def may_launch(self) -> bool:
        """Whether a request may go out now."""
        lease = self._engine.proven
        return (
            self._is_deliverer
            and lease is not None
            and lease.may_launch(self._clock.since_boot_s())
        )

    def state(self) -> Deliverer:
        """How it stands."""
        seen, left_s = self._seen, None
        if seen is not None and seen.lease_left_s is not None:
            left_s = seen.lease_left_s - (self._clock.since_boot_s() - self._seen_s)
        now_s = self._clock.since_boot_s()
        return Deliverer(
            outbox=self._outbox.path,
            account=self._engine.destination,
            gateway=None if seen is None else seen.deliverer,
            is_here=self._is_deliverer,
            lease_left_s=left_s,
            unled_s=0.0 if self._unled_since_s is None else now_s - self._unled_since_s,
            answer_s=self._answer_s,
            trouble=None if self._trouble is None else self._trouble.message,
            standby_lag_s=self._reading.standby_lag_s,
            others=self._reading.others,
        )

    def told(self) -> DestinationStatus | None:
        """How the destination stands to who delivers elsewhere; None: it does here, or
        nobody has said."""
        seen = self._seen
        if self._is_deliverer or seen is None or seen.told is None or self._sender is None:
            return None
        if self._outbox.destination_hold is not None:
            return None  # which every gateway knows by itself
        state, reason, since_at, next_probe_at, endpoint, *_ = json.loads(seen.told)
        return self._sender.status()._replace(
            endpoint=endpoint,
            state=state,
            reason=reason,
            since_at=since_at,
            next_probe_at=next_probe_at,
        )

    async def tell_release(self) -> None:
        """An operator ends every wait, here; who delivers elsewhere hears of it."""
        if not self._is_deliverer:
            await self._outbox.change_delivery(lambda _: self._engine.tell_release())

    async def run(self) -> None:
        """Look, and do what is to be done, until cancelled."""
        while True:
            await self._turn()
            await asyncio.sleep(LOOK_S)

    async def give_up(self) -> None:
        """Deliver no more, so that another may at once; after the sender has ended."""
        self._stopped = True
        if self._engine.lease is None:
            return
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await self._outbox.change_delivery(lambda _: self._engine.give_up_lease())
        except (OutboxdError, TimeoutError) as error:
            self._log.warning("lease.not_given_up", error=str(error), effect="it ends by itself")

    # --- one turn ---

    async def _turn(self) -> None:
        self._look_at_commits()
        asked_s = self._clock.since_boot_s()
        try:
            async with asyncio.timeout(HANGS_S):
                seen = await self._outbox.read(lambda _: self._reading.look_around())
                self._seen_s = self._clock.since_boot_s()
                self._answer_s = self._seen_s - asked_s
                self._hear(seen)
                await self._see_to_lease(seen)
        except TimeoutError:
            if self._trouble is None:
                self._note(hangs())
            self._connections.leave_hung(self._outbox)
        except LeaseLost:
            pass  # `_follow` tells
        except Refused as error:
            self._note(error)
        except OutboxdError as error:
            self._note(OutboxUnreachable(error.message, error.hint, RETRY_AFTER_S))
        else:
            if self._outbox.intake_stuck_s() < COMMIT_DEADLINE_S:
                self._note(None)
        self._follow()

    def _look_at_commits(self) -> None:
        """A commit that waits (for a standby that is missing, say) is never cancelled: it
        may be there, and not replicated. But nobody waits for it any longer."""
        if self._outbox.intake_stuck_s() < COMMIT_DEADLINE_S:
            return
        what = f"a commit of the outbox's database has not ended after {COMMIT_DEADLINE_S:g} s"
        hint = "is its synchronous standby away? events are refused until it ends"
        self._outbox.give_up_waiting(CommitUnknown(what, hint))
        self._note(OutboxUnreachable(what, hint, RETRY_AFTER_S))

    async def _see_to_lease(self, seen: LookAround) -> None:
        if self._stopped:
            return
        lease = self._engine.lease
        if lease is not None:
            told, shown = _told(self._sender, self._key_mark())
            if shown != self._shown or self._clock.since_boot_s() >= lease.renew_at_s():
                outage = None if self._sender is None else self._sender.outage
                await self._outbox.change_delivery(lambda _: self._engine.renew_lease(told, outage))
                self._shown = shown
                if self._sender is not None and not lease.may_launch(self._clock.since_boot_s()):
                    self._sender.arrived()  # it came to rest when the lease was about to end
        elif seen.deliverer is None or (seen.lease_left_s or 0.0) <= 0:
            await self._outbox.change_delivery(self._take)

    def _take(self, _: Engine) -> None:
        """In one transaction: from its commit on what flew before is known as such."""
        if self._engine.take_lease():
            self._engine.recover_sending()

    def _follow(self) -> None:
        """Start or stop the sender as the lease says."""
        has_lease = self._engine.lease is not None
        if has_lease == self._is_deliverer:
            return
        if has_lease:
            self._log.info("lease.taken", effect="this gateway delivers from now on")
            if self._sender is not None:
                self._sender.took_over(self._engine.lease_row.outage)
        else:
            self._log.warning("lease.lost", effect="another gateway delivers")
        self._is_deliverer = has_lease

    # --- what others did ---

    def _hear(self, seen: LookAround) -> None:
        before, self._seen = self._seen, seen
        if seen.deliverer is not None:
            self._unled_since_s = None
        elif self._unled_since_s is None:
            self._unled_since_s = self._seen_s
        self._outbox.take_counts()
        self._compare_with_deliverer()
        if before is None or self._sender is None:
            return
        # Compared with what the database said before: what this gateway itself has
        # just written it may not say yet.
        if seen.hold != before.hold and seen.hold != self._outbox.destination_hold:
            self._outbox.destination_hold = seen.hold
            self._sender.heard_hold(seen.hold)
        if seen.releases != before.releases and self._is_deliverer:
            self._sender.heard_hold(None)
        if seen.changes != before.changes:
            self._engine.look_from_start()
            self._sender.wake()
        elif seen.accepted != before.accepted:
            self._sender.arrived()

    def _compare_with_deliverer(self) -> None:
        """One account has one endpoint and one key: whoever delivers sends what all have
        taken."""
        told, seen = self.told(), self._seen
        if told is None or seen is None or seen.told is None or self._sender is None:
            return
        mark = (json.loads(seen.told)[5:] or [None])[0]  # none by a version before this
        own, own_mark = self._sender.status().endpoint, self._key_mark()
        compared = (told.endpoint, mark, own, own_mark)
        if compared == self._compared:
            return
        self._compared = compared
        hint = (
            "gateways with one [komodor] account deliver for each other: give this one's account"
            " another name, or all the same endpoint and key"
        )
        account = self._engine.destination
        if told.endpoint != own:
            self._log.error(
                "gateway.differs", delivers_to=told.endpoint, own=own, account=account, hint=hint
            )
        elif mark != own_mark and None not in (mark, own_mark):
            self._log.error(
                "gateway.differs",
                what="its API key is not the deliverer's",
                account=account,
                hint=f"{hint}; while a key is replaced at one after the other all is well",
            )

    def _key_mark(self) -> str | None:
        """By which two keys are told apart and from which none can be found: 16 bits of a
        hash, of which one in 65,536 of all keys has the same."""
        key = self._key()
        if key is None:
            return None
        return hashlib.sha256(f"{self._engine.destination}\n{key}".encode()).hexdigest()[:4]

    def _note(self, trouble: Refused | None) -> None:
        before, self._trouble = self._trouble, trouble
        self._on_trouble(trouble)
        if trouble is not None and (before is None or before.message != trouble.message):
            self._log.warning("database.lost", error=trouble.message, hint=trouble.hint)
        elif trouble is None and before is not None:
            self._log.info("database.back")


class SharedDestination:
    """The destination as an operator sees it at any gateway: as it stands to who delivers."""

    def __init__(self, sender: Sender, election: Election) -> None:
        self._sender, self._election = sender, election
        self.hold, self.wake = sender.hold, sender.wake

    def status(self) -> DestinationStatus:
        """The destination at this moment, as far as was heard."""
        return self._election.told() or self._sender.status()

    async def release(self, by: str) -> None:
        """End every wait, whoever imposed it, wherever it is delivered."""
        await self._sender.release(by)
        await self._election.tell_release()

    async def ask_through(self, id: str) -> Through:
        """What became of an entry that it took."""
        return await self._sender.ask_through(id)


def _told(sender: Sender | None, key_mark: str | None) -> tuple[str | None, tuple[str | None, ...]]:
    """How the destination stands, as text; and what of it others should hear of at once."""
    if sender is None:
        return None, ()
    status = sender.status()
    shown = (status.state, status.reason)
    more = (status.since_at, status.next_probe_at, status.endpoint, key_mark)
    return json.dumps([*shown, *more]), (*shown, str(sender.outage))
