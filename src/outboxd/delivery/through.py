"""What became, behind a gateway, of an event that it took from here.

Asks and changes nothing: the request holds no event, so that none can arise by
it, neither at the gateway nor at whoever else may answer in its place.
"""

from __future__ import annotations

from typing import Protocol

from outboxd.delivery.next_hop import NextHop
from outboxd.delivery.outcome import Answer
from outboxd.event.hop import GREETING, STATE
from outboxd.outbox.model import State
from outboxd.status import Through


class Asking(Protocol):
    """What this needs of the transport."""

    async def ask(self, id: str) -> Answer: ...

    async def validate(self) -> Answer: ...


async def ask_through(transport: Asking, next_hop: NextHop, id: str) -> Through:
    """The state of the delivered entry `id` as the gateway has it. Where the other end
    is Komodor itself there is nothing behind it."""
    if next_hop.is_gateway is None:
        answer = await transport.validate()
        if GREETING.lower() in answer.headers:  # else it may be anybody on the way
            next_hop.learn(answer.status, answer.headers)
    if next_hop.is_gateway is None:
        reason = "since the agent's start nothing was answered that tells what the destination is"
        return Through(None, reason)
    if not next_hop.is_gateway:
        return Through(State.DELIVERED)
    answer = await transport.ask(id)
    state = answer.headers.get(STATE.lower())
    return Through(None, _why(answer)) if state is None else Through(state)


def _why(answer: Answer) -> str:
    if answer.status is None:
        return f"the gateway could not be asked: {answer.fault_text or answer.fault}"
    return f"the gateway answered {answer.status} and no state"
