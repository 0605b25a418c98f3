"""Komodor's custom event: strict reading, normalising, the body that is sent, its scope."""
