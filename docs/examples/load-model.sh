#!/usr/bin/env bash
# Load a model through the gateway, with a key that can do nothing else and is revoked
# at the end; run where `authz keys` reaches the database. GATEWAY_URL says where.
#
# On the machine of the model server itself no key is needed, and nothing is opened:
#   OLLAMA_HOST=127.0.0.1:11434 ollama pull llama3.1
#   docker compose exec ollama ollama pull llama3.1
set -euo pipefail
model=${1:-llama3.1}
name="load-$(date +%s)-$$"

key=$(authz keys create --name "$name" --models "$model" --scopes manage \
  --expires 1h --json | sed 's/.*"key": "\(nz_[0-9A-Za-z]*\)".*/\1/')
trap 'authz keys revoke "$name" >/dev/null' EXIT

curl --silent --show-error --no-buffer --fail-with-body \
  --header @<(printf 'Authorization: Bearer %s\n' "$key") \
  "$GATEWAY_URL/api/pull" --data '{"model": "'"$model"'"}'
