"""What people call those who hand in events: a user's name, a token's.

The outbox keeps them by what the kernel or the token said (`uid:1000`,
`token:web-hosts`, `agent`), which no change of a name spoils. Looking up a user may
ask the network (LDAP): never on an event loop.
"""

from __future__ import annotations

import contextlib
import pwd

USER, TOKEN = "uid:", "token:"
AGENT = "agent"  # reports the end of an outage itself


def name_of(producer: str) -> str:
    """The user's name or the token's; as it is kept where there is none. May block."""
    if producer.startswith(USER):
        try:
            return pwd.getpwuid(int(producer.removeprefix(USER))).pw_name
        except (KeyError, ValueError, OverflowError):
            return producer
    return producer.removeprefix(TOKEN)


def producers_called(name: str) -> list[str]:
    """Who may be meant by a name, or by what the outbox keeps, as filters take it. May block."""
    if name == AGENT or name.startswith((USER, TOKEN)):
        return [name]
    found = [TOKEN + name]
    # No user of this host: then a token's name.
    with contextlib.suppress(KeyError, ValueError):
        found.append(f"{USER}{pwd.getpwnam(name).pw_uid}")
    return found
