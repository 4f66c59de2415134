-- migrate:up
-- oldest-reader: 1

-- Who changed what. Without a foreign key: history outlives what it tells of.
CREATE TABLE audit (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT now(),
    actor         text        NOT NULL,
    database_role text        NOT NULL DEFAULT session_user,
    action        text        NOT NULL,
    key_id        uuid        NOT NULL,
    before        jsonb,
    after         jsonb
);

CREATE INDEX audit_key_id ON audit (key_id, id);
CREATE INDEX audit_at ON audit (at);

-- A table of its own, so that writing it fires no trigger; without a foreign key,
-- so that it neither waits for nor holds up a change of the secret.
CREATE TABLE last_used (
    digest bytea       PRIMARY KEY,
    at     timestamptz NOT NULL
);

-- The order in which keys are listed, page by page.
CREATE INDEX keys_created_at ON keys (created_at, id);

-- Which pepper the digest was made with; null: none. An older service cannot find
-- such a key: set a pepper when all replicas are of this version.
--
-- Last, as it keeps the service from its look-ups until this file is done.
ALTER TABLE secrets ADD COLUMN pepper_id text;
