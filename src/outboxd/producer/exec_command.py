"""`outboxd exec`: run a job as if we were not there, and say when it failed.

How the job runs is `job.py`; this is the event about it. The event comes
after the job's end and never changes it: where none can be stored, one line
on stderr says so. What the event needs is imported only when there is one.
"""

from __future__ import annotations

import os

from outboxd.errors import EventError, EventTooLarge, OutboxdError, UsageError
from outboxd.producer.command_line import Arguments
from outboxd.producer.job import Ending, Job
from outboxd.producer.messages import say
from outboxd.producer.words import UNREADABLE, make_readable, readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outboxd.producer.gateway import GatewayClient
    from outboxd.producer.settings import ProducerSettings

COMMAND_CHARACTERS_MAX = 1000
COMMAND_IN_SUMMARY_MAX = 100
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")
# The options that can be wrong as an event's field is, with the field.
OPTIONS = {
    "$.eventType": "type",
    "$.summary": "summary",
    "$.severity": "severity",
    "$.dedupKey": "dedup_key",
    "$.ttlSeconds": "ttl_s",
}
TEXTS = ("type", "summary", "severity", "cluster", "namespace", "service", "detail", "dedup_key")


def run(arguments: Arguments) -> int:
    for pair in arguments.detail:
        if pair.find("=") < 1:  # before the job runs, not after
            raise UsageError(f"--detail cannot be {pair!r}", "write --detail KEY=VALUE")
    job = Job(
        arguments.argv,
        keep_stderr=not arguments.no_output,
        timeout_s=arguments.timeout_s,
        kill_after_s=arguments.kill_after_s,
        meanwhile=lambda: _rehearse(arguments),
    )
    ending = job.run()
    if ending.error is not None:
        say(f"{arguments.argv[0]}: {ending.error}")
    if ending.failed or arguments.on == "always":
        _report(arguments, ending)
    return ending.status


def _rehearse(arguments: Arguments) -> None:
    """Compose an event, hand it in to nobody, and so have all of the standard library that the
    real one will need: an upgrade of the system may have removed that when a long job ends."""
    try:
        from outboxd.event.komodor import parse
        from outboxd.producer import gateway, hand_in, settings

        place = settings.load(arguments.config)
        ending = Ending(signal=15, stderr=b"some output")
        options = {name: getattr(arguments, name) for name in OPTIONS.values()}
        data = _event(arguments, options, _details(arguments, ending), ending)
        parse(data, place.event_type_max, place.event_bytes_max)
        assert hand_in
        if gateway.find(arguments) is not None:
            gateway.load_ahead()
    except Exception:
        return  # what is still so at the job's end is told then


def _report(arguments: Arguments, ending: Ending) -> None:
    """Hand in the event. Whatever fails here is one line and changes nothing."""
    try:
        from outboxd.producer import gateway, settings

        place = settings.load(arguments.config)
        if place.warning is not None:
            say(f"warning: {place.warning}")
        try:
            named = gateway.find(arguments)
        except UsageError as error:
            say(f"warning: {error}; going on without the gateway")
            named = None
        _hand_in(arguments, ending, place, named)
    except OutboxdError as error:
        say(f"no event about it could be stored: {error}")
    except Exception as error:
        say(f"no event about it could be stored: {type(error).__name__}: {error}")


def _hand_in(
    arguments: Arguments, ending: Ending, place: ProducerSettings, gateway: GatewayClient | None
) -> None:
    from outboxd.producer.hand_in import hand_in

    make_readable(arguments, TEXTS)
    details = _details(arguments, ending)
    options = {name: getattr(arguments, name) for name in OPTIONS.values()}
    while True:
        try:
            data = _event(arguments, options, details, ending)
            hand_in(data, place, arguments.socket, gateway)
            return
        except EventTooLarge:
            # Better an event without its output than none.
            if details.pop("stderr", None) is None:
                raise
        except EventError as error:
            # The job failed, and a slip in one of our options must not hide that.
            option = OPTIONS.get(error.field or "")
            if option is None or options[option] is None:
                raise
            say(f"--{option.removesuffix('_s').replace('_', '-')} is left out: {error}")
            options[option] = None


def _event(
    arguments: Arguments, options: dict[str, object], details: dict[str, object], ending: Ending
) -> bytes:
    from outboxd.event.komodor import build

    default_type = "job failed" if ending.failed else "job succeeded"
    default_severity = "error" if ending.failed else "information"
    return build(
        _given(options["type"], default_type),
        _given(options["summary"], _summary(arguments, ending)),
        _given(options["severity"], default_severity),
        arguments.cluster,
        arguments.namespace,
        arguments.service,
        details,
        options["dedup_key"],  # type: ignore[arg-type]
        None,
        options["ttl_s"],  # type: ignore[arg-type]
    )


def _given(option: object, default: str) -> str:
    return default if option is None else str(option)


def _summary(arguments: Arguments, ending: Ending) -> str:
    from outboxd.units import format_duration

    command = "the job"
    if not arguments.no_command:
        command = _cut(command_text(arguments.argv), COMMAND_IN_SUMMARY_MAX)
    short = ending.duration_s < 10
    took = f"{ending.duration_s:.1f}s" if short else format_duration(ending.duration_s)
    if ending.error is not None:
        return f"{command} could not be started: {ending.error}"
    if ending.timed_out:
        return f"{command} was ended by its timeout after {took}"
    if ending.signal is not None:
        return f"{command} was ended by {signal_name(ending.signal)} after {took}"
    if ending.exit_code:
        return f"{command} failed with exit code {ending.exit_code} after {took}"
    return f"{command} succeeded after {took}"


def _details(arguments: Arguments, ending: Ending) -> dict[str, object]:
    """What is to be said of the job; details that were given win over ours."""
    from outboxd.producer.masking import masked_text

    details: dict[str, object] = {}
    for pair in arguments.detail:
        name, _, value = pair.partition("=")
        details[name] = value
    ours: dict[str, object] = {}
    if not arguments.no_command:
        ours["command"] = _cut(command_text(arguments.argv), COMMAND_CHARACTERS_MAX)
    if ending.signal is not None:
        ours["signal"] = signal_name(ending.signal)
    else:
        ours["exitCode"] = ending.exit_code
    if ending.timed_out:
        ours["timeoutSeconds"] = arguments.timeout_s
    if ending.error is not None:
        ours["error"] = ending.error
    ours["durationSeconds"] = round(ending.duration_s, 3)
    ours["user"] = _user()
    ours["host"] = os.uname().nodename
    if ending.stderr:
        # U+0000 is in no event; and whatever bytes these are, the event is UTF-8.
        text = ending.stderr.decode("utf-8", "replace").replace("\0", UNREADABLE)
        ours["stderr"] = masked_text(text)
    return {**ours, **details}


def command_text(argv: list[str]) -> str:
    """The command as one could type it, but for what looks like a secret."""
    from outboxd.producer.masking import masked_command

    return readable(" ".join(_quoted(word) for word in masked_command(argv)))


def signal_name(number: int) -> str:
    from signal import Signals

    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _quoted(word: str) -> str:
    if word and PLAIN.issuperset(word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _cut(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
