"""The room of the reading and controlling routes, for tools and people.

Reads the outbox and shows it; changes it only for those whom the socket's
credentials allow. It must never know how events are sent.
"""
