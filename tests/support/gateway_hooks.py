"""Loaded by a test's gateways as their `sitecustomize`: a name and a clock of their own,
a record of each launch, and a stop at whichever await the test orders.

Orders come by a FIFO. "stop before|after FILE:FUNCTION:FIRST:LAST" has the process stop
itself when a coroutine of delivery waits within these lines, or further in: once, as soon
as it waits (before what it waits for is known), or as it is about to go on. "turns FILE"
writes down how often it has looked who delivers. What the first order is may stand in
`hooks.json`, for what happens at a start.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import threading
import time

turns = [0]
wanted = [None]
stopped_at = [""]


def boot_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def frames_of(coroutine):
    """Where in outboxd it waits: "file:function:line" of each frame, the innermost last."""
    frames = []
    while coroutine is not None:
        frame = None
        for name in ("cr_frame", "gi_frame", "ag_frame"):
            frame = frame or getattr(coroutine, name, None)
        if frame is not None and "/outboxd/" in frame.f_code.co_filename:
            name = frame.f_code.co_filename.rpartition("/outboxd/")[2]
            frames.append(f"{name}:{frame.f_code.co_name}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return frames


def is_wanted(frames, file, function, first, last):
    for frame in frames:
        at, name, line = frame.rsplit(":", 2)
        if (at, name) == (file, function) and int(first) <= int(line) <= int(last):
            return True
    return False


def stop_at(moment, frames):
    order = wanted[0]
    if order is not None and order[0] == moment and is_wanted(frames, *order[1:]):
        wanted[0] = None
        with open(stopped_at[0], "a") as file:
            file.write(f"{moment} {' '.join(frames)}\n")
        os.kill(os.getpid(), signal.SIGSTOP)


class Stepped:
    """A coroutine whose every wait can be a stop."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __await__(self):
        send, value = self.coroutine.send, None
        while True:
            try:
                waits_for = send(value)
            except StopIteration as ended:
                return ended.value
            frames = frames_of(self.coroutine)
            turns[0] += frames[:1] == frames[-1:] and "election.py:run:" in frames[0]
            stop_at("before", frames)
            try:
                value = yield waits_for
                send = self.coroutine.send
            except BaseException as error:
                send, value = self.coroutine.throw, error
            stop_at("after", frames)


def stepped(function):
    async def wrapped(*args, **kwargs):
        return await Stepped(function(*args, **kwargs))

    return wrapped


def obey(path):
    with open(path) as orders:
        for line in orders:
            verb, *words = line.split()
            if verb == "turns":
                with open(words[0] + ".part", "w") as file:
                    file.write(str(turns[0]))
                os.rename(words[0] + ".part", words[0])
            else:
                wanted[0] = ordered(words)


def ordered(words):
    """A stop; of nothing: none."""
    moment, place = words
    return (moment, *place.rsplit(":", 3)) if ":" in place else None


def begin(directory):
    """In the gateway's own process, once its configuration is known."""
    import socket

    import outboxd.clock

    with open(os.path.join(directory, "hooks.json")) as file:
        hooks = json.load(file)
    name, offset_ms = hooks["name"], hooks["clock_offset_s"] * 1000
    socket.gethostname = lambda: name
    if offset_ms:
        wall_ms = outboxd.clock.Clock.wall_ms
        outboxd.clock.Clock.wall_ms = lambda self: wall_ms(self) + offset_ms
    stopped_at[0] = os.path.join(directory, "stops")
    wanted[0] = ordered(hooks["stop"]) if hooks.get("stop") else None
    if hooks.get("fails_at_first"):
        fail_once(hooks["fails_at_first"])
    record = os.open(
        os.path.join(directory, "launches"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    from outboxd.delivery.in_flight import InFlight

    launch = InFlight.launch

    def recorded(self, entry):
        os.write(record, f"{boot_s()} {entry.id}\n".encode())
        launch(self, entry)

    InFlight.launch = recorded
    orders = os.path.join(directory, "orders")
    threading.Thread(target=obey, args=(orders,), daemon=True).start()


def fail_once(verb):
    """The database is away for a moment, just when the engine's verb is done."""
    from outboxd.errors import OutboxUnreachable
    from outboxd.outbox.postgresql.engine import PostgresEngine

    done = getattr(PostgresEngine, verb)

    def fails(self, *args):
        setattr(PostgresEngine, verb, done)
        raise OutboxUnreachable("the connection ended", "it comes back", 1)

    setattr(PostgresEngine, verb, fails)


def hook(module):
    """As soon as the agent's own modules are there."""
    from outboxd.agent.election import Election
    from outboxd.delivery.in_flight import InFlight
    from outboxd.delivery.sender import Sender

    Sender.run = stepped(Sender.run)
    InFlight._send = stepped(InFlight._send)
    Election.run = stepped(Election.run)
    run_agent = module.run_agent

    def hooked(config_path):
        begin(os.path.dirname(config_path))
        return run_agent(config_path)

    module.run_agent = hooked
    fault()


def fault():
    """What a test breaks deliberately stands in its place."""


class Finder(importlib.abc.MetaPathFinder):
    """Hooks in when `outboxd.agent.run` has been loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != "outboxd.agent.run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def executed(module):
            execute(module)
            hook(module)

        spec.loader.exec_module = executed
        return spec


sys.meta_path.insert(0, Finder())
