-- migrate:up
-- oldest-reader: 1

-- What a key may ask of the machine: a preset and limits in its place, as
-- `authz keys create --parameters` takes them. An older service does not ask for
-- them: set other ones than the default when all replicas are of this version.
ALTER TABLE keys ADD COLUMN parameters text NOT NULL DEFAULT 'default';
