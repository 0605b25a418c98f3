"""`outboxd dead-letters`: look at what was given up; send it back, drop or export it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from outboxd.cli import render
from outboxd.cli.events import EventPages, filters, list_entries, show
from outboxd.cli.queue import Queue, open_queue, resolve_id
from outboxd.cli.rows import ListedEntry, Params, one_line, read_entry
from outboxd.errors import EX_OK, EventError, OutboxdError, UnknownId, UsageError
from outboxd.outbox.model import EntryChange
from outboxd.producer.command_line import Arguments
from outboxd.producer.messages import report
from outboxd.times import rfc3339

PROGRESS_FROM = 200  # fewer are done before anyone could read it


def run(arguments: Arguments) -> int:
    """One of the five subcommands."""
    with open_queue(arguments) as queue:
        if arguments.subcommand == "show":
            return show(queue, arguments.id, arguments.json)
        if arguments.subcommand == "export":
            return _export(queue, arguments)
        if arguments.subcommand == "retry":
            return _change(queue, arguments, EntryChange.RETRY, "sent back to be delivered")
        if arguments.subcommand == "drop":
            return _change(queue, arguments, EntryChange.DROP, "dropped for good")
        return list_entries(queue, filters(arguments, "dead"), arguments, render.dead_letters_table)


def exported(entry: ListedEntry) -> bytes:
    """A dead letter as an event that the batch route takes.

    Its dedup key is made from the entry's id: the dead letter's own key would
    make it a duplicate of itself, and with none a file handed in twice would
    make two events.
    """
    event: dict[str, object] = {
        "eventType": entry.event_type,
        "summary": entry.summary,
        "severity": entry.severity,
    }
    if entry.scope:
        event["scope"] = entry.scope
    if bytes(entry.details) not in (b"{}", b"null"):
        event["details"] = entry.details
    event["occurredAt"] = entry.occurred_at or entry.received_at
    event["dedupKey"] = f"retry of {entry.id}"
    return one_line(msgspec.json.encode(event)).encode()


def _export(queue: Queue, arguments: Arguments) -> int:
    count = 0
    with _progress("exporting", queue, arguments) as step:
        for entry in _wanted(queue, arguments):
            sys.stdout.write(exported(entry).decode() + "\n")
            count += 1
            step()
    sys.stdout.flush()
    print(f"{_letters(count)} exported", file=sys.stderr)
    return EX_OK


def _change(queue: Queue, arguments: Arguments, change: EntryChange, done: str) -> int:
    """Do it to those named, or to all that the filters leave, at once."""
    if bool(arguments.id) == arguments.all:
        raise UsageError(
            f"dead-letters {arguments.subcommand} needs ids, or --all with or without filters",
            "`outboxd dead-letters` lists them",
        )
    if arguments.id and len(filters(arguments)):
        raise UsageError("filters go with --all, not with ids", "leave out one of them")
    if not arguments.all:
        return _change_each(queue, arguments, change, done)
    wanted = filters(arguments, "dead")
    if change is EntryChange.DROP and not arguments.yes:
        wanted = _known_by_now(wanted)
        if not _confirmed(queue, wanted):
            print("nothing was dropped", file=sys.stderr)
            return EX_OK
    count = queue.change_dead(change, wanted)
    print(f"{_letters(count)} {done}")
    return EX_OK


def _change_each(queue: Queue, arguments: Arguments, change: EntryChange, done: str) -> int:
    """What fails is told, and the rest is done all the same."""
    count = 0
    failure: OutboxdError | None = None
    with _progress("working", queue, arguments) as step:
        for id in arguments.id:
            try:
                queue.change(change, resolve_id(queue, id))
                count += 1
            except (UnknownId, EventError) as error:
                report(error)
                failure = failure or error
            step()
    print(f"{_letters(count)} {done}")
    return EX_OK if failure is None else failure.exit_code


def _known_by_now(wanted: Params) -> Params:
    """The filters without what comes in while somebody reads the question: its number
    does not mean that."""
    if any(name == "until" for name, _ in wanted):
        return wanted
    return [*wanted, ("until", rfc3339(time.time_ns() // 1_000_000))]


def _confirmed(queue: Queue, wanted: Params) -> bool:
    """Whether the person at the terminal typed how many would be lost.

    Raises:
        UsageError: there is no terminal to ask at.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "dead-letters drop --all asks for the number of events, and here is no terminal",
            "give --yes if you mean it",
        )
    count = sum(1 for _ in EventPages(queue, wanted))
    if not count:
        return True
    print(f"This removes {_letters(count)} for good. Type the number to go on: ", end="",
          file=sys.stderr, flush=True)  # fmt: skip
    return sys.stdin.readline().strip() == str(count)


def _wanted(queue: Queue, arguments: Arguments) -> Iterator[ListedEntry]:
    """The dead letters that ids or filters name; raises for an id that is wrong."""
    ids = arguments.id
    if not ids:
        for raw in EventPages(queue, filters(arguments, "dead")):
            yield read_entry(raw)
        return
    for id in ids:
        entry = read_entry(queue.get(resolve_id(queue, id)))
        if entry.state != "dead":
            raise EventError(f"{entry.id} is {entry.state}, it is no dead letter")
        yield entry


@contextmanager
def _progress(word: str, queue: Queue, arguments: Arguments) -> Iterator[Callable[[], None]]:
    """A bar on stderr for what takes long, in a terminal alone."""
    total = len(arguments.id or ()) or int(queue.status()["outbox"]["dead"])
    if total < PROGRESS_FROM or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(word, *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(word, total=total)
        yield lambda: progress.advance(task)


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"
