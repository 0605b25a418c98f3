"""What the agent tells of itself: log lines and metrics.

The other rooms hand facts in here; nothing here ever decides anything, fails
its caller, or shows an API key or the body of an event.
"""
