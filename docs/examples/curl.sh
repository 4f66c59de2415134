#!/usr/bin/env bash
# The gateway by curl; GATEWAY_URL and GATEWAY_KEY say where and as whom.
set -euo pipefail
model=${1:-llama3.1}

# Read from a file that is none: an argument would show the key to everyone in `ps`.
ask() {
  curl --silent --show-error --no-buffer --fail-with-body \
    --header @<(printf 'Authorization: Bearer %s\n' "$GATEWAY_KEY") "$@"
}

echo '# The models of the key'
ask "$GATEWAY_URL/api/tags"
echo

echo '# An answer in one piece'
ask "$GATEWAY_URL/api/chat" --data '{"model": "'"$model"'", "stream": false,
  "messages": [{"role": "user", "content": "Hello"}]}'
echo

echo '# A stream, as OpenAI forms it'
ask "$GATEWAY_URL/v1/chat/completions" --data '{"model": "'"$model"'", "stream": true,
  "messages": [{"role": "user", "content": "Hello"}]}'

echo '# A refusal: curl ends with status 22, the body says why, the header has the id'
ask --include "$GATEWAY_URL/api/chat" --data '{"model": "no-model-of-this-key"}' || true
echo
