"""The outbox on PostgreSQL, which several gateways share."""
