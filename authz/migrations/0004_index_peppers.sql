-- migrate:up
-- oldest-reader: 1

-- Which peppers there are is asked whenever the service starts. A file of its own:
-- it reads all secrets, while the service must be able to do so, too.
CREATE INDEX secrets_pepper_id ON secrets (pepper_id) WHERE pepper_id IS NOT NULL;
