-- migrate:up
-- oldest-reader: 1

-- How much a key may use, as in "rpm=60,tpm=100000,concurrency=4,budget=1000000/day".
-- An older service does not ask for them: set limits when all replicas are of this
-- version.
ALTER TABLE keys ADD COLUMN limits text NOT NULL DEFAULT '';

-- What was used, by the hour in which the requests began. Some keys with some models
-- in an hour: the rows do not grow with the requests. Without a foreign key: what was
-- used stays when a key goes.
CREATE TABLE usage (
    hour          timestamptz NOT NULL,
    key_id        uuid        NOT NULL,
    owner         text        NOT NULL,
    model         text        NOT NULL,
    endpoint      text        NOT NULL,
    requests      bigint      NOT NULL,
    input_tokens  bigint      NOT NULL,
    output_tokens bigint      NOT NULL,
    estimated     bigint      NOT NULL, -- requests whose tokens are
    failed        bigint      NOT NULL, -- requests
    aborted       bigint      NOT NULL, -- requests, by the client
    duration_ms   bigint      NOT NULL,
    first_byte_ms bigint      NOT NULL,
    PRIMARY KEY (key_id, hour, model, endpoint, owner)
) PARTITION BY RANGE (hour);

CREATE INDEX usage_hour ON usage (hour);

-- What lies beyond the months below; nothing is lost if they run out.
CREATE TABLE usage_other PARTITION OF usage DEFAULT;

-- A month is a table, so that an old one is dropped, not deleted row by row.
CREATE FUNCTION usage_add_months(months int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    begins timestamptz;
    ends   timestamptz;
BEGIN
    FOR month IN 0 .. months LOOP
        begins := date_trunc('month', now(), 'UTC') + make_interval(months => month);
        ends := date_trunc('month', begins + interval '40 days', 'UTC');
        BEGIN
            EXECUTE format(
                'CREATE TABLE IF NOT EXISTS %I PARTITION OF usage FOR VALUES FROM (%L) TO (%L)',
                'usage_' || to_char(begins AT TIME ZONE 'UTC', 'YYYY_MM'), begins, ends);
        EXCEPTION WHEN check_violation THEN
            NULL; -- some of the month is in usage_other already, and so stays all of it
        END;
    END LOOP;
END $$;

SELECT usage_add_months(24);

-- Which requests are counted above, for as long as one may be told of again.
CREATE TABLE usage_requests (
    id uuid        PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Requests of one batch share a moment, so that this index stays small. No brin: the
-- place of what was deleted is taken by newer rows.
CREATE INDEX usage_requests_at ON usage_requests (at);

-- When keys change, for replicas to tell how late they hear of it. On a channel of its
-- own, as an older service reads nothing but digests on the other. The moment is that of
-- the statement: one that changes many keys says it once.
CREATE FUNCTION keys_notify_moment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('authz_keys_at',
                      (extract(epoch FROM statement_timestamp()) * 1000)::bigint::text);
    RETURN NULL;
END $$;

CREATE TRIGGER keys_notify_moment AFTER UPDATE ON keys
    FOR EACH STATEMENT EXECUTE FUNCTION keys_notify_moment();
