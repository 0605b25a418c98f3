"""What a running agent has imported: nothing that only a command or a migration needs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.metadata import packages_distributions

import pytest

# Of what is installed, all that an agent without a proxy loads.
AN_AGENT = {
    "asyncinotify",
    "httptools",
    "jmespath",
    "msgspec",
    "prometheus_client",
    "structlog",
    "tenacity",
    "typing_extensions",
    "uuid_utils",
    "uvloop",
}
# Of the standard library, what is large and of use to an error message or a zip file alone.
NO_AGENT = {"difflib", "importlib.resources", "zipfile"}
# What an environment has Python load before any program (setuptools does, in some).
AT_THE_START = {"_distutils_hack"}
# What a file of an earlier version needs besides.
A_MIGRATION = {"sqlite_utils", "click"}

# Python runs this at its start; what it notes is read when the agent has ended.
NOTE = """
import atexit, os, sys

def note():
    with open(os.environ["LOADED"], "w") as file:
        file.writelines(name + "\\n" for name, module in list(sys.modules.items()) if module)

atexit.register(note)
"""


@pytest.fixture
def agent(make_agent, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NOTE)
    environ = {"PYTHONPATH": str(tmp_path), "LOADED": str(tmp_path / "loaded")}
    return make_agent(start=False, environ=environ)


def loaded(agent):
    """The packages that an agent loads from its start to its end, an event between."""
    agent.start()
    agent.await_entry(agent.accept("an event"), state="delivered")
    assert agent.stop() == 0
    names = {name.partition(".")[0] for name in modules(agent)}
    return names & packages_distributions().keys() - {"outboxd"} - AT_THE_START


def modules(agent):
    """All that it had loaded when it ended last."""
    return set((agent.directory / "loaded").read_text().split())


def test_an_agent_loads_what_it_needs_whether_its_outbox_is_new_or_not(agent):
    assert loaded(agent) == AN_AGENT
    assert loaded(agent) == AN_AGENT
    assert not modules(agent) & NO_AGENT


def test_what_migrates_is_loaded_for_a_file_of_an_earlier_version(agent):
    loaded(agent)
    with closing(sqlite3.connect(agent.outbox)) as file:
        file.execute("ALTER TABLE dedup DROP COLUMN mark")
        file.execute("ALTER TABLE entries DROP COLUMN hop")
        file.execute("DELETE FROM _sqlite_migrations WHERE name > '0003'")
        file.commit()
    assert loaded(agent) > AN_AGENT | A_MIGRATION
    assert loaded(agent) == AN_AGENT
