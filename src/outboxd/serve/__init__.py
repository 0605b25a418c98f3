"""The room of the local HTTP server: connections, sockets, a table of routes.

It knows nothing of events or the outbox: intake, api and web hand it their
routes. It must never block the loop, and never leave a caller without an
answer that says what was wrong (`error`, `field`, `hint`).
"""
