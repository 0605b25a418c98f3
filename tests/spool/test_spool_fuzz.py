"""Structured fuzzing of the spool reader: files made of parts whose fate is known.

Each file is built with its expectation beside it, so no second parser is
needed to judge: every good line becomes exactly one entry, every file with a
bad part lies in `rejected/` with its reason, nothing else happens. A failure
prints its seed; OUTBOXD_SEED draws the same files again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random

ROUND = 200
EVENT_BYTES_MAX = 4096

BAD_LINES = (
    b"nonsense",
    b"{",
    b"}{",
    b"\x00",
    b"\xff\xfe{}",
    b"null",
    b"[]",
    b'"text"',
    b"0",
    b"NaN",
    b'{"eventType": "a"}',
    b'{"summary": "a"}',
    b'{"eventType": "", "summary": "b"}',
    b'{"eventType": "a", "summary": "b", "summary": "c"}',
    b'{"eventType": "a", "summary": "b", "details": {"a": NaN}}',
    b'{"eventType": "a", "summary": "\\ud800"}',
    b'{"eventType": "a", "summary": "\\u0000"}',
    b'{"eventType": "a", "summary": "b", "ttlSeconds": 1e999}',
    b'{"eventType": "a", "summary": "b", "scope": {"clusters": ' + b"[" * 200 + b"}}",
    b'\xef\xbb\xbf{"eventType": "a", "summary": "b"}',
    b'{"eventType": "a", "summary": "b"} trailing',
    b"[" * 5000,
    b"9" * 5000,
    b"x" * 3000,
)
NAMES = (
    *("f", "wärme", "-rf", " ", "a b", "\udcff\udcfe", "new\nline"),
    *("x" * 240, "…", "~2", "n.error"),
)


def good_line(dice, mark):
    event = {
        "eventType": dice.choice(["a", "ü" * 60, "backup done"]),
        "summary": f"{mark} " + dice.choice(["", "\u2028", "🎉" * 20, '\\"\n']),
    }
    if dice.random() < 0.5:
        nested = 1
        for _ in range(dice.randrange(90)):
            nested = [nested]
        event["details"] = {"n": nested, "big": 10 ** dice.randrange(400)}
    if dice.random() < 0.3:
        event["scope"] = {"clusters": dice.choice([[], ["c"], None])}
    return json.dumps(event, ensure_ascii=dice.random() < 0.5).encode()


def make(dice, mark):
    """A file's content, the marks of its good lines, whether something is bad."""
    kind = dice.randrange(6)
    if kind == 0:
        return b"" if dice.random() < 0.5 else b" \n" * dice.randrange(5), [], True
    if kind == 1:
        event = json.loads(good_line(dice, f"{mark}.0"))
        whole = json.dumps(event, indent=dice.randrange(1, 4)).encode()
        too_large = len(whole) > EVENT_BYTES_MAX
        return whole, [] if too_large else [f"{mark}.0"], too_large
    if kind == 2:
        return dice.choice(BAD_LINES), [], True
    if kind == 3:
        event = json.loads(good_line(dice, f"{mark}.0"))
        whole = json.dumps(event, indent=1).encode()
        return whole[: dice.randrange(1, len(whole) - 1)], [], True
    lines, marks, bad = [], [], False
    for number in range(dice.randrange(1, 30)):
        if dice.random() < 0.8:
            marks.append(f"{mark}.{number}")
            lines.append(good_line(dice, marks[-1]))
        elif dice.random() < 0.5:
            lines.append(dice.choice([b"", b"  "]))
        else:
            lines.append(dice.choice(BAD_LINES))
            bad = True
    ends = dice.choice([b"\n", b"\r\n"])
    return ends.join(lines) + dice.choice([b"", ends]), marks, bad or not marks


def test_files_of_every_kind_end_as_they_should(intake, full, seed):
    count = 20_000 if full else 200
    dice = random.Random(seed)

    async def main():
        async with intake(serve=False, event_bytes_max=EVENT_BYTES_MAX) as parts:
            for first in range(0, count, ROUND):
                await one_round(parts, first)

    async def one_round(parts, first):
        wanted, rejected = [], 0
        for number in range(first, first + ROUND):
            content, marks, bad = make(dice, str(number))
            # Number first: names differ however they are shortened.
            parts.put(f"{number}{dice.choice(NAMES)}"[:250], content)
            wanted += marks
            rejected += bad
        await parts.emptied(100.0)
        assert parts.outbox.counts.pending == len(wanted), f"seed {seed}, from file {first}"
        seen = []
        for entry in await all_entries(parts):
            seen.append(json.loads(entry.body)["summary"].split()[0])
            await parts.drop(entry.id)
        assert sorted(seen) == sorted(wanted), f"seed {seed}, from file {first}"
        names = os.listdir(parts.spool / "rejected")
        assert len(names) == 2 * rejected, f"seed {seed}, from file {first}"
        for name in names:
            os.unlink(parts.spool / "rejected" / name)
        assert parts.outbox.spool_progress == {}

    async def all_entries(parts):
        from outboxd.outbox.model import EntryFilter

        entries, cursor = [], None
        while True:
            page = await parts.outbox.page(EntryFilter(), cursor, 1000)
            entries += page.entries
            cursor = page.next
            if cursor is None:
                return entries

    asyncio.run(main())
