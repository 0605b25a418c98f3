"""A local stand-in for Komodor, so that everything can be tried without an account.

This room answers as Komodor's documentation says, shows what it received, and
misbehaves on request. It knows nothing of the agent and shares nothing with
it but the bottom of the package: a fault in the agent must not hide behind the
same fault here.
"""
