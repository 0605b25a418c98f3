"""What producers are called: looked up beside the loop, with nobody waiting for it."""

from __future__ import annotations

import asyncio
import os
import pwd
import threading

from support.waiting import PATIENCE_S

from outboxd.producer_names import name_of, producers_called
from outboxd.web.names import KEPT_S, Names


def test_a_user_and_a_token_have_names_and_what_has_none_stays_as_it_is() -> None:
    own = pwd.getpwuid(os.getuid())
    assert name_of(f"uid:{own.pw_uid}") == own.pw_name
    assert name_of("token:web-hosts") == "web-hosts"
    for unnamed in ("uid:3999999999", "uid:99999999999999999999", "agent", ""):
        assert name_of(unnamed) == unnamed
    assert producers_called(own.pw_name) == [f"token:{own.pw_name}", f"uid:{own.pw_uid}"]
    assert producers_called("no-such-user") == ["token:no-such-user"]
    for kept in ("uid:7", "token:root", "agent"):
        assert producers_called(kept) == [kept]


def test_a_name_that_takes_long_keeps_nobody_waiting_and_is_there_later() -> None:
    now_s = [0.0]
    begun, found = threading.Event(), threading.Event()
    asked = []

    def look_up(producer: str) -> str:
        asked.append(producer)
        begun.set()
        found.wait(PATIENCE_S)
        return producer.upper()

    async def main() -> None:
        names = Names(lambda: now_s[0], look_up)
        assert await names.of(["a", "b"]) == {}
        assert begun.wait(PATIENCE_S)
        assert asked == ["a"]
        found.set()
        async with asyncio.timeout(PATIENCE_S):
            while len(known := await names.of(["b", "a"])) < 2:
                pass  # each look waits for a moment
            assert known == {"a": "A", "b": "B"}
            assert asked == ["a", "b"], "each is looked up once"
            now_s[0] += KEPT_S
            while await names.of(["a"]) == {}:
                pass
        await names.close()
        assert asked == ["a", "b", "a"]

    asyncio.run(main())
