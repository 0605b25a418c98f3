"""The suite of a search in SQL, on PostgreSQL; and that no look takes too much."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.moves import incoming

from outboxd.outbox.engine import SearchLimits
from outboxd.outbox.mentions import Texts
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.postgresql.search import LOOK_BYTES_MAX
from outboxd.web.text_scan import TextScan

_path = Path(__file__).parents[1] / "sqlite" / "test_search.py"
_spec = importlib.util.spec_from_file_location("search_suite", _path)
assert _spec is not None
assert _spec.loader is not None
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)

for _name in (
    "test_a_search_in_sql_leaves_out_nothing_that_matches",
    "test_plain_texts_that_cannot_match_are_left_out",
    "test_an_id_is_looked_for_by_its_beginning",
):
    globals()[_name] = getattr(_suite, _name)


@pytest.fixture(scope="module")
def stocked(server):
    engine = PostgresEngine(server.fresh())
    _suite.stock(engine)
    yield engine
    engine.close()


def test_a_look_that_would_take_too_much_is_made_smaller(engine):
    """Large events among very many small ones: found all the same, some at once."""
    large = 256 * 1024
    with engine.transaction():
        engine.accept([incoming(f"small {n}", 1) for n in range(300)])
        engine.accept([incoming(f"large {n} {'x' * large}", 1) for n in range(40)])
        engine.accept([incoming(f"small {n} after", 1) for n in range(300)])
    asked: list[int | None] = []
    texts = engine.texts

    def weighed(seqs, wanted):
        found = texts(seqs, wanted)
        asked.append(
            None if found is None else sum(len(text.body) for _, text in texts(seqs, Texts()))
        )
        return found

    engine.texts = weighed
    engine.search_limits = SearchLimits(rows_max=8192, look_s=60.0)  # however busy the machine
    scan = TextScan(Texts(q="large 7 "))
    while not scan.step(engine):
        pass
    assert len(scan.below(1 << 62, 9)) == 1
    assert scan.looked >= 640
    assert None in asked
    assert max(size for size in asked if size is not None) <= LOOK_BYTES_MAX
    assert len(asked) < 40
