"""The tables of an outbox on PostgreSQL, and how they get from one version to the next.

What never changes of an entry (`entries`, with its body) stands apart from what a
settlement changes (`states`): a settlement makes a new version of a row of some
100 bytes and leaves the body alone, and vacuum has the small table to look through.

Each table has the destination of its rows: several accounts may share a database, and
none ever reads or writes another's.

Migrations are applied by one gateway at a time, under a lock of the transaction:
behind a pooler there is no session to hold one.
"""

from __future__ import annotations

DESTINATION = "default"  # of what is there without a name
LOCK = 0x6F757462  # "outb": of the advisory locks of this database
TABLES = (
    "entries",
    "states",
    "dedup",
    "tallies",
    "deliverers",
)  # that grow, and every gateway writes

MIGRATIONS: tuple[tuple[str, str], ...] = (
    (
        "0001_entries",
        """
CREATE SEQUENCE outboxd_seq;
CREATE TABLE entries (
    seq bigint PRIMARY KEY,             -- order of receipt, with gaps
    id uuid NOT NULL,                   -- UUIDv7, the receipt's id
    received_at bigint NOT NULL,        -- ms since 1970, as all times
    occurred_at bigint,
    expires_at bigint,
    event_type text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('information', 'warning', 'error')),
    scope text NOT NULL,                -- JSON as sent, '' for none
    source text NOT NULL CHECK (source IN ('socket', 'batch', 'spool', 'agent')),
    dedup_key text,
    producer text NOT NULL,
    hop text,                           -- its way through other agents, as JSON
    body text NOT NULL                  -- the wire body; text and not jsonb: numbers keep theirs
);
CREATE UNIQUE INDEX entries_id ON entries (id);
CREATE TABLE states (
    seq bigint PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    held boolean NOT NULL,
    due_at bigint NOT NULL,             -- the earliest next claim; 0: at once
    ended_at bigint,
    repeats int NOT NULL CHECK (repeats >= 0),
    last_occurred_at bigint,
    attempt_count int NOT NULL CHECK (attempt_count >= 0),
    spent int NOT NULL CHECK (spent BETWEEN 0 AND attempt_count),
    possible_duplicate boolean NOT NULL,
    dead_reason text CHECK (dead_reason IN ('rejected', 'exhausted', 'expired')),
    attempts jsonb NOT NULL,            -- [[at, duration_ms, outcome, status, error]...]
    producer text NOT NULL,
    expires_at bigint,
    CHECK ((state = 'dead') = (dead_reason IS NOT NULL)),
    CHECK ((state = 'pending') = (ended_at IS NULL)),
    CHECK (NOT held OR state = 'pending')
) WITH (fillfactor = 70);
CREATE INDEX states_due ON states (due_at, seq) WHERE state = 'pending' AND NOT held;
CREATE INDEX states_held ON states (seq) WHERE held;
CREATE INDEX states_dead ON states (seq) WHERE state = 'dead';
CREATE INDEX states_ended ON states (ended_at) WHERE state = 'delivered';
CREATE INDEX states_expiring ON states (expires_at)
    WHERE state = 'pending' AND expires_at IS NOT NULL;
CREATE TABLE dedup (
    key text COLLATE "C" PRIMARY KEY,
    seq bigint NOT NULL,
    id uuid NOT NULL,
    mark bigint NOT NULL,               -- only an event without a later one is a duplicate
    expires_at bigint NOT NULL
);
CREATE INDEX dedup_expiring ON dedup (expires_at);
-- One row a gateway's connection and producer, so that gateways never wait for each other's counts.
CREATE TABLE tallies (
    gateway text NOT NULL,
    producer text NOT NULL,
    pending bigint NOT NULL,
    delivered bigint NOT NULL,
    dead bigint NOT NULL,
    held bigint NOT NULL,
    accepted bigint NOT NULL,           -- ever
    PRIMARY KEY (gateway, producer)
) WITH (fillfactor = 50);
CREATE TABLE deliverers (
    destination text PRIMARY KEY,
    holder text,                        -- a fresh UUID each term
    gateway text,                       -- who that is, for people
    turn bigint NOT NULL,
    lease_ends_at timestamptz,          -- by the database's clock
    sending bigint[] NOT NULL,          -- seqs in flight
    hold text,                          -- JSON of the operator's hold
    changes bigint NOT NULL DEFAULT 0,  -- how often an operator has changed entries
    releases bigint NOT NULL DEFAULT 0, -- how often one has ended every wait elsewhere
    told text                           -- JSON of how the destination stands to the holder
);
""",
    ),
    (
        "0002_moves",
        """
CREATE TABLE moves (note text NOT NULL);  -- JSON of a MoveNote: the last move, one row
CREATE FUNCTION outboxd_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the outbox is moved to another one' USING ERRCODE = '25006';
END
$$;
""",
    ),
    (
        "0003_outage",
        # JSON of the Outage in which the holder is, for whoever takes over.
        "ALTER TABLE deliverers ADD COLUMN outage text;",
    ),
    (
        "0004_destinations",
        """
ALTER TABLE entries ADD COLUMN destination text NOT NULL DEFAULT 'default';
ALTER TABLE states ADD COLUMN destination text NOT NULL DEFAULT 'default';
ALTER TABLE dedup ADD COLUMN destination text NOT NULL DEFAULT 'default';
ALTER TABLE tallies ADD COLUMN destination text NOT NULL DEFAULT 'default';
ALTER TABLE moves ADD COLUMN destination text NOT NULL DEFAULT 'default';
ALTER TABLE entries ALTER COLUMN destination DROP DEFAULT;
ALTER TABLE states ALTER COLUMN destination DROP DEFAULT;
ALTER TABLE dedup ALTER COLUMN destination DROP DEFAULT;
ALTER TABLE tallies ALTER COLUMN destination DROP DEFAULT;
ALTER TABLE moves ALTER COLUMN destination DROP DEFAULT;
-- The destination comes first in every index: whoever reads one's entries passes none of
-- another's, however many there are, and a seq counts within its destination.
ALTER TABLE entries DROP CONSTRAINT entries_pkey, ADD PRIMARY KEY (destination, seq);
ALTER TABLE states DROP CONSTRAINT states_pkey, ADD PRIMARY KEY (destination, seq);
ALTER TABLE dedup DROP CONSTRAINT dedup_pkey, ADD PRIMARY KEY (destination, key);
ALTER TABLE tallies DROP CONSTRAINT tallies_pkey,
    ADD PRIMARY KEY (gateway, destination, producer);
ALTER TABLE moves ADD PRIMARY KEY (destination);
DROP INDEX entries_id, states_due, states_held, states_dead, states_ended, states_expiring,
    dedup_expiring;
CREATE UNIQUE INDEX entries_id ON entries (destination, id);
CREATE INDEX states_due ON states (destination, due_at, seq)
    WHERE state = 'pending' AND NOT held;
CREATE INDEX states_held ON states (destination, seq) WHERE held;
CREATE INDEX states_dead ON states (destination, seq) WHERE state = 'dead';
CREATE INDEX states_ended ON states (destination, ended_at) WHERE state = 'delivered';
CREATE INDEX states_expiring ON states (destination, expires_at)
    WHERE state = 'pending' AND expires_at IS NOT NULL;
CREATE INDEX dedup_expiring ON dedup (destination, expires_at);
-- Of one that was left by a move: refused is what concerns that destination alone.
DO $$
DECLARE
    is_left boolean := EXISTS (SELECT FROM pg_trigger WHERE tgname = 'outboxd_moved'
        AND tgrelid = 'states'::regclass);
    guarded text;
BEGIN
    DROP TRIGGER IF EXISTS outboxd_moved ON states;
    DROP TRIGGER IF EXISTS outboxd_moved ON deliverers;
    UPDATE deliverers SET destination = 'default' WHERE destination = 'komodor';
    IF is_left THEN
        FOREACH guarded IN ARRAY ARRAY['states', 'deliverers'] LOOP
            EXECUTE format('CREATE TRIGGER "outboxd_moved_in:default" BEFORE INSERT OR UPDATE'
                ' ON %I FOR EACH ROW WHEN (NEW.destination = ''default'')'
                ' EXECUTE FUNCTION outboxd_moved()', guarded);
            EXECUTE format('CREATE TRIGGER "outboxd_moved_out:default" BEFORE DELETE'
                ' ON %I FOR EACH ROW WHEN (OLD.destination = ''default'')'
                ' EXECUTE FUNCTION outboxd_moved()', guarded);
        END LOOP;
    END IF;
END
$$;
""",
    ),
)
