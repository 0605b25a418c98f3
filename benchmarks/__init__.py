"""Measurements of outboxd beside the limits of the machine; see README.md here."""
