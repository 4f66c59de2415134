# Run once by the image of PostgreSQL, on its empty database.
psql --set ON_ERROR_STOP=1 --set service="$SERVICE_PASSWORD" --set manager="$MANAGER_PASSWORD" \
  --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE authz_service LOGIN PASSWORD :'service';
CREATE ROLE authz_manager LOGIN PASSWORD :'manager';
SQL
