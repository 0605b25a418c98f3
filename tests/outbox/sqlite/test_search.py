"""What SQL leaves out of a search has certainly not what is looked for."""

from __future__ import annotations

import itertools
import json

import pytest

from outboxd.outbox.engine import Engine
from outboxd.outbox.mentions import Text, Texts
from outboxd.outbox.model import Attempt, Incoming, Settlement
from outboxd.outbox.sqlite.engine import SqliteEngine

WORDS = (
    "plain words", "UPPER Case", "100% sure_thing!", 'a "quote" and a \\ backslash', "stra\u00dfe",
    "\u212aelvin and the long \u017f", "\ufb01ligature", "line\nbreak", "\u65e5\u672c", "_", "%",
    "!", "",
)  # fmt: skip
NEEDLES = (
    "plain", "upper CASE", "100%", "sure_", "_", "%", "!", '"', "\\", "strasse", "\u00df", "kelvin",
    "long s", "filigature", "\n", "\u65e5", "true", "12345", "422", "nothing", "key-7",
    "such field", "eventType", "null",
)  # fmt: skip


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    engine = SqliteEngine(str(tmp_path_factory.mktemp("outbox") / "outbox.db"))
    stock(engine)
    yield engine
    engine.close()


def stock(engine: Engine) -> None:
    """Each word as a summary, as details (escaped and not), as a key and as an error."""
    items = []
    for word, is_ascii, place in itertools.product(WORDS, (True, False), ("summary", "details")):
        event = {"eventType": "t", "summary": "s", "details": {"n": 12345, "b": True}}
        event[place] = word or "s" if place == "summary" else {"key-7": word}
        body = json.dumps(event, ensure_ascii=is_ascii).encode()
        items.append(
            Incoming(body, "t", "information", "", "socket", 1, dedup_key=f"{word}{len(items)}")
        )
    with engine.transaction():
        engine.accept(items)
    settlements = [
        Settlement(seq, "dead", Attempt(1, 1, "rejected", 422, word), dead_reason="rejected")
        for seq, word in enumerate([*WORDS, 'no such "field"'], start=1)
    ]
    with engine.transaction():
        engine.settle(settlements)


def rows(engine: Engine) -> list[tuple[int, Text]]:
    """All of them: nothing is looked for that could be left out."""
    found = engine.texts(engine.seq_range(), Texts())
    assert len(found) == 4 * len(WORDS)
    return found


def matching(rows: list[tuple[int, Text]], wanted: Texts) -> set[int]:
    return {seq for seq, text in rows if wanted.match(text)}


@pytest.mark.parametrize("needle", NEEDLES)
def test_a_search_in_sql_leaves_out_nothing_that_matches(stocked, needle: str) -> None:
    everything = rows(stocked)
    folded = needle.casefold()
    for wanted in (
        Texts(q=folded),
        Texts(error=folded),
        Texts(q=folded, error="such"),
        Texts(dedup_key=needle + "0"),
    ):
        may = stocked.texts(range(len(everything) + 1), wanted)
        assert matching(may, wanted) == matching(everything, wanted), wanted


def test_plain_texts_that_cannot_match_are_left_out(stocked) -> None:
    everything = rows(stocked)
    may = stocked.texts(range(len(everything) + 1), Texts(q="nothing"))
    assert 0 < len(may) < len(everything) / 1.5


def test_an_id_is_looked_for_by_its_beginning(stocked) -> None:
    everything = rows(stocked)
    id = everything[3][1].id
    for wanted in (Texts(q=id), Texts(id=id), Texts(q=id[:20]), Texts(id=id[:20])):
        may = stocked.texts(range(len(everything) + 1), wanted)
        assert matching(may, wanted) == matching(everything, wanted)
        assert matching(may, wanted) >= {4}
