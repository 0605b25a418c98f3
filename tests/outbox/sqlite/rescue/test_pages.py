"""Pages read without SQLite say what SQLite says, and noise never raises."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path

import pytest

from outboxd.outbox.sqlite.rescue import pages as carve
from outboxd.outbox.sqlite.rescue.pages import PAGE_SIZES, Cell, Images, Malformed

VALUES = [
    None, 0, 1, -1, 127, 128, -129, 32768, -8_388_609, 2**31, -(2**47) - 1, 2**63 - 1, -(2**63),
    "", "plain", "ümläut ✓", "x" * 3000, "y" * 20_000, b"", b"\x00\xff" * 40,
]  # fmt: skip


@pytest.fixture(params=PAGE_SIZES)
def database(tmp_path: Path, request: pytest.FixtureRequest) -> bytes:
    path = tmp_path / "any.db"
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA page_size = {request.param}")
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, value, mark TEXT)")
    db.execute("CREATE TABLE w (value TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID")
    rows = [(n, value, f"mark {n}") for n, value in enumerate(VALUES * 12, 1)]
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    db.executemany(
        "INSERT INTO w VALUES (?, ?)", [(f"{n} " + "k" * (n * 11), n) for n in range(300)]
    )
    db.commit()
    db.close()
    return path.read_bytes()


def cells(images: Images, kinds: tuple[int, ...]) -> list[Cell]:
    found = []
    for page in images.pages():
        image = images.newest(page)
        if carve.kind(image, page) in kinds and not images.is_map(page):
            offsets, lost = carve.offsets(image, page)
            assert lost == 0
            found += [Cell(page, 0, offset) for offset in offsets]
    return found


def test_every_row_of_a_table_is_read_with_its_overflow_pages(database: bytes):
    images = Images(database, None)
    found = {}
    for cell in cells(images, (carve.TABLE_LEAF,)):
        values = carve.record(carve.payload(images, cell))
        if len(values) == 3:
            found[carve.row_id(images.newest(cell.page), cell.offset)] = values[1:]
    assert found == {n: [v, f"mark {n}"] for n, v in enumerate(VALUES * 12, 1)}


def test_every_row_of_a_table_without_row_ids_is_read_once(database: bytes):
    images = Images(database, None)
    found = []
    for cell in cells(images, (carve.INDEX_LEAF, carve.INDEX_INTERIOR)):
        values = carve.record(carve.payload(images, cell))
        if len(values) == 2:
            found.append(values)
    assert sorted(found) == sorted([f"{n} " + "k" * (n * 11), n] for n in range(300))


@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_free_pages_are_known_from_the_list_and_the_map(tmp_path: Path, page_bytes: int):
    path = tmp_path / "free.db"
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA page_size = {page_bytes}")
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("CREATE TABLE t (value)")
    db.executemany("INSERT INTO t VALUES (?)", [("x" * 2000,)] * 200)
    db.commit()
    assert Images(path.read_bytes(), None).free_pages() == (set(), True)
    db.execute("DELETE FROM t WHERE rowid > 50")
    db.commit()
    (count,) = db.execute("PRAGMA freelist_count").fetchone()
    db.close()
    free, agreed = Images(path.read_bytes(), None).free_pages()
    assert (len(free), agreed) == (count, True)
    data = bytearray(path.read_bytes())
    data[36:40] = (count + 1).to_bytes(4, "big")
    assert Images(bytes(data), None).free_pages() == (free, False)


def test_the_size_of_pages_is_known_without_the_header(database: bytes):
    """By where pages begin; a header that says another of our sizes is damage of two bits."""
    size = int.from_bytes(database[16:18], "big")
    for header in (b"\0\0", b"\x7f\xff", b"\x10\x01"):
        assert Images(database[:16] + header + database[18:], None).page_bytes == size


def test_noise_is_malformed_and_raises_nothing_else(database: bytes):
    random_ = random.Random(3)
    for _ in range(40):
        data = bytearray(database)
        for _ in range(30):
            data[random_.randrange(len(data))] = random_.randrange(256)
        page = random_.randrange(len(data) // 4096) * 4096
        data[page + 8 : page + 4096] = random_.randbytes(4088)
        images = Images(bytes(data), None)
        images.free_pages()
        for number in images.pages():
            image = images.newest(number)
            if carve.kind(image, number) is None:
                continue
            offsets, _ = carve.offsets(image, number)
            for offset in offsets:
                carve.begins_with_number(image, offset)
                for read in (carve.record_columns, carve.row_id):
                    with contextlib.suppress(Malformed):
                        read(image, offset)
                with contextlib.suppress(Malformed):
                    carve.record(carve.payload(images, Cell(number, 0, offset)))


def test_a_cells_place_survives_packing():
    for cell in (Cell(1, 0, 8), Cell(2**31, 2**24 - 1, 65535)):
        assert carve.unpacked(cell.packed()) == cell
