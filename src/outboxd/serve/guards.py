"""Who may ask a listener that a browser can reach.

One guard for every route of such a listener: against a web site that points
its own name at this host (DNS rebinding), and against one that has a visitor's
browser ask here (cross-site requests). It must never look at what is asked
for beyond that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection

from outboxd.serve.answers import Refusal
from outboxd.serve.request import Request

Guard = Callable[[Request], None]


def browser_guard(names: Collection[str] = (), *, any_host: bool = False) -> Guard:
    """Refuses (421, 403) what another site's page had a browser ask.

    Addresses and localhost are always fine as the host: a foreign page can only
    be made to call here under its own name. `names` are further ones that are
    this listener's; `any_host` switches that check off, for a listener that
    serves other hosts under whatever name they know it by.
    """
    known = {name.lower().strip("[]") for name in names}

    def check(request: Request) -> None:
        host = _host_name(request.host)
        is_known = host == "localhost" or host.endswith(".localhost") or host in known
        if not (any_host or is_known or _is_address(host)):
            raise Refusal(
                421,
                f"this listener does not serve the host {host[:100]!r}",
                "Host",
                "use the address that it listens on, such as http://127.0.0.1",
            )
        _check_site(request)

    return check


def _check_site(request: Request) -> None:
    """Browsers say where a request comes from (Fetch Metadata), and of what page it is."""
    site = request.header("sec-fetch-site")
    if site in ("cross-site", "same-site"):  # the same site: another port of this host
        to_the_page = request.path == "/" and request.header("sec-fetch-mode") == "navigate"
        if not (to_the_page and request.header("sec-fetch-dest") == "document"):
            raise _foreign()
    origin = request.header("origin")
    if origin is not None and origin.partition("://")[2].lower() != request.host.lower():
        raise _foreign()


def _foreign() -> Refusal:
    return Refusal(
        403,
        "a page of another site asked for this",
        None,
        "open this listener's own page, or ask with a program that is no browser",
    )


def _host_name(header: str) -> str:
    """The host without its port; "" for what is neither."""
    header = header.strip().lower()
    if header.startswith("["):
        name, _, port = header[1:].partition("]")
        has_port = port.startswith(":")
    else:
        name, colon, port = header.partition(":")
        name, port, has_port = name.rstrip("."), colon + port, bool(colon)
    return name if not port or (has_port and port[1:].isdecimal()) else ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
