"""The spool: files that producers drop, taken into the outbox."""
