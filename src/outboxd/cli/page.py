"""`outboxd page`: open the timeline page with the right to act."""

from __future__ import annotations

import os
import sys

from outboxd.cli.agent import AgentQueue
from outboxd.cli.queue import client_config, socket_path
from outboxd.errors import EX_OK, ConfigError, EventError
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless


def run(arguments: Arguments) -> int:
    """Fetch a link over the agent's socket, print it, and open it where there is a desktop."""
    queue = AgentQueue(socket_path(arguments, client_config(arguments)))
    try:
        url = queue.page_link()
    except EventError as error:  # a conflict: there is no page
        raise ConfigError(error.message, error.hint) from None
    finally:
        queue.close()
    print(harmless(url))
    print("good once, in one browser, for an hour; it acts as you", file=sys.stderr)
    has_desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_desktop and url.startswith("http") and sys.stdout.isatty() and not arguments.no_open:
        import webbrowser

        webbrowser.open(url)
    return EX_OK
