-- migrate:up
-- oldest-reader: 1

-- An identity: who, with which models, until when. Its secrets stand apart, so
-- that a rotation keeps the identity's id, owner and history.
CREATE TABLE keys (
    id         uuid        PRIMARY KEY,
    name       text        NOT NULL,
    owner      text        NOT NULL DEFAULT '',
    models     text[]      NOT NULL,
    scopes     text[]      NOT NULL,
    expires_at timestamptz,
    disabled   boolean     NOT NULL DEFAULT false,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    version    bigint      NOT NULL DEFAULT 1
);

-- A revoked key gives its name free.
CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;

CREATE TABLE secrets (
    digest     bytea       PRIMARY KEY CHECK (octet_length(digest) = 32),
    key_id     uuid        NOT NULL REFERENCES keys ON DELETE CASCADE,
    prefix     text        NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX secrets_key_id ON secrets (key_id);

-- Freshness: every change of a key or of one of its secrets raises the key's
-- version and tells the replicas, by digest, what to forget; in the same
-- transaction, so that neither can happen alone.
CREATE FUNCTION keys_raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;

CREATE FUNCTION keys_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('authz_keys', encode(digest, 'hex'))
       FROM secrets WHERE key_id = NEW.id;
    RETURN NULL;
END $$;

CREATE FUNCTION secrets_touch_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify('authz_keys', encode(OLD.digest, 'hex'));
    END IF;
    UPDATE keys SET version = version WHERE id = coalesce(NEW.key_id, OLD.key_id);
    RETURN NULL;
END $$;

CREATE TRIGGER keys_raise_version BEFORE UPDATE ON keys
    FOR EACH ROW EXECUTE FUNCTION keys_raise_version();
CREATE TRIGGER keys_notify AFTER UPDATE ON keys
    FOR EACH ROW EXECUTE FUNCTION keys_notify();
CREATE TRIGGER secrets_touch_key AFTER INSERT OR UPDATE OR DELETE ON secrets
    FOR EACH ROW EXECUTE FUNCTION secrets_touch_key();
