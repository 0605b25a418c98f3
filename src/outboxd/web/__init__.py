"""The timeline page: what the agent sent and what waits, or what the sandbox received.

This room only reads. It serves one page with its own files, and the counts and
pictures on it; it changes nothing, holds no credentials, and trusts nothing of
what an event says.
"""
