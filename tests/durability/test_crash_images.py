"""What a power cut leaves, at any point, opens again with every promise kept.

The system calls of the real agent under load are recorded; from them images are
rebuilt of what the disk may hold after a power cut, and each is opened with the
agent's own opening and recovery code, every hundredth by the whole agent. The
same campaign over agents that were spoiled shows that it would have noticed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import imagecheck, recording

SHARES = 2


def campaign(source: Path, seed: int, images: int, by_id: bool = True) -> dict:
    """Check so many images of one recording, on several cores; the merged report."""
    command = [sys.executable, imagecheck.__file__, str(source), str(seed), str(images)]
    reports = []
    processes = [
        subprocess.Popen(
            [*command, str(share), str(SHARES), *(() if by_id else ("by-summary",))],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(imagecheck.__file__).parents[1])},
        )
        for share in range(SHARES)
    ]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0
        reports.append(json.loads(output))
    return {
        "images": sum(report["images"] for report in reports),
        "whole": sum(report["whole"] for report in reports),
        "promises": sum(report["promises"] for report in reports),
        "faulty": {k: v for report in reports for k, v in report["faulty"].items()},
    }


def told(source: Path, seed: int, report: dict) -> str:
    """Which images are wrong, and how to make one again."""
    faulty = report["faulty"]
    first = next(iter(faulty), None)
    return (
        f"{len(faulty)} of {report['images']} images: {list(faulty.items())[:5]}\n"
        f"replay: OUTBOXD_RECORDING={source} OUTBOXD_SEED={seed}; one image: "
        f"imagecheck.leave_image(recording.read({str(source)!r}), {seed}, "
        f"{report['images']}, {first}, target)"
    )


def recordings(tmp_path: Path, loads: Sequence[dict]) -> list[Path]:
    """Record anew, or take what $OUTBOXD_RECORDING names."""
    if given := os.environ.get("OUTBOXD_RECORDING"):
        return [Path(given)]
    return [
        recording.record(tmp_path / f"recording{number}", seed=number, **load)
        for number, load in enumerate(loads)
    ]


@pytest.mark.timeout(1500)
def test_every_image_of_a_power_cut_keeps_every_promise(tmp_path, need, full, seed):
    need("strace")
    loads = [{"runs": 2, "posts": 30}]
    if full:
        loads = [{"runs": 4, "posts": 36}] * 4 + [{"runs": 2, "posts": 15, "pauses": 2}]
    images = 20_000 if full else 200
    sources = recordings(tmp_path, loads)
    reports = [campaign(source, seed, images // len(sources)) for source in sources]
    for source, report in zip(sources, reports, strict=True):
        assert not report["faulty"], told(source, seed, report)
    figures = {key: sum(r[key] for r in reports) for key in ("images", "whole", "promises")}
    print(f"seed {seed}: {figures}")
    assert figures["images"] == images
    assert figures["promises"] > 20 * images


SYNCHRONOUS = """
import outboxd.outbox.sqlite.engine as engine
real = engine.connect

def connect(path):
    connection = real(path)
    connection.execute("PRAGMA synchronous = {}")
    return connection

engine.connect = connect
"""

# Deliberately wrong: the receipt goes out, the commit follows.
ANSWERS_FIRST = """
import asyncio
import uuid_utils
import outboxd.intake.intake as door
from outboxd.outbox.model import Receipt

async def keep(self, items):
    async def later():
        await asyncio.sleep(0.02)
        await self._outbox.accept(items)
    asyncio.ensure_future(later())
    return [Receipt(str(uuid_utils.uuid7()), "accepted", "pending") for _ in items]

door.Intake.keep = keep
"""


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(SYNCHRONOUS.format("NORMAL"), id="synchronous=NORMAL"),
        pytest.param(SYNCHRONOUS.format("OFF"), id="synchronous=OFF"),
        pytest.param(ANSWERS_FIRST, id="answers before it commits"),
    ],
)
def test_a_spoiled_agent_is_caught(tmp_path, need, full, patch):
    """The negative controls: the same campaign, and receipts are lost."""
    need("strace")
    source = recording.record(tmp_path / "recording", runs=1, posts=24, patch=patch)
    images = 400 if full else 30
    report = campaign(source, 1, images, by_id=False)
    losing = [f for f in report["faulty"].values() if any("lost" in fault for fault in f)]
    print(f"{len(losing)} of {report['images']} images lost receipts")
    assert len(losing) >= (images // 20 if full else 1)
