"""The schema of PostgreSQL, one SQL file a step; see adapters.postgres_schema."""
