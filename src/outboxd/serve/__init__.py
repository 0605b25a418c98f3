"""The room of the local HTTP server: connections, sockets, a table of routes.

It knows nothing of events or the outbox: intake, api, web and the sandbox hand
it their routes, which know nothing of connections. One way of a request:
`reader` (bytes in, requests out) → `connection` (time, order, bounds) → `server`
(guards, table, errors) → the route's handler → `connection` again. It must never
block the loop, and never leave a caller without an answer that says what was
wrong (`error`, `field`, `hint`).
"""
