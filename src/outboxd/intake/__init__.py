"""The room of intake: how events come in, and their receipts.

Socket, batch, spool and the agent's own report all pass one door. Nothing here
sends anything or knows the destination; no receipt is given before the commit.
"""
