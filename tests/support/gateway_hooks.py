"""Loaded by a test's gateways as their `sitecustomize`: a name and a clock of their own,
a record of each launch, and a stop at whichever await the test orders.

Orders come by a FIFO: "sites FILE" writes down at which places the coroutines of delivery
have waited so far; "stop before|after SITE" has the process stop itself there, once:
as soon as it waits (before what it waits for is known), or as it is about to go on.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import threading
import time

seen_sites = {}
wanted = [None]


def boot_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def site_of(coroutine):
    """The innermost place in outboxd where it waits."""
    place = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and "/outboxd/" in frame.f_code.co_filename:
            name = frame.f_code.co_filename.rpartition("/outboxd/")[2]
            place = f"{name}:{frame.f_code.co_name}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return place


def stop_at(moment, site):
    if wanted[0] == (moment, site):
        wanted[0] = None
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
            site = site_of(self.coroutine)
            seen_sites[site] = seen_sites.get(site, 0) + 1
            stop_at("before", site)
            try:
                value = yield waits_for
                send = self.coroutine.send
            except BaseException as error:
                send, value = self.coroutine.throw, error
            stop_at("after", site)


def stepped(function):
    async def wrapped(*args, **kwargs):
        return await Stepped(function(*args, **kwargs))

    return wrapped


def obey(path):
    with open(path) as orders:
        for line in orders:
            verb, *words = line.split()
            if verb == "sites":
                with open(words[0] + ".part", "w") as file:
                    json.dump(dict(seen_sites), file)  # a copy: the loop's thread adds to it
                os.rename(words[0] + ".part", words[0])
            else:
                wanted[0] = tuple(words)


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
