"""Agents as processes of their own, before a scripted Komodor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.outside import Agent, Komodor


@pytest.fixture
def komodor() -> Iterator[Komodor]:
    komodor = Komodor()
    yield komodor
    komodor.stop()


@pytest.fixture
def make_agent(tmp_path: Path, komodor: Komodor) -> Iterator[Callable[..., Agent]]:
    """Makes agents that are killed at the end; starts them unless told not to."""
    made: list[Agent] = []

    def make(start: bool = True, environ: dict[str, str] | None = None, **sections: Any) -> Agent:
        agent = Agent(tmp_path, komodor.url, extra=sections, environ=environ)
        made.append(agent)
        if start:
            agent.start()
        return agent

    yield make
    for agent in made:
        if agent.pid is not None:
            agent.kill()


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Agent:
    return make_agent()
