"""Chat with the `ollama` package; GATEWAY_URL and GATEWAY_KEY say where and as whom."""

import os
import sys

import ollama

client = ollama.Client(
    os.environ["GATEWAY_URL"],
    headers={"Authorization": f"Bearer {os.environ['GATEWAY_KEY']}"},
)
model = sys.argv[1] if len(sys.argv) > 1 else "llama3.1"
question = {"role": "user", "content": "Hello"}

try:
    print("models:", *(found.model for found in client.list().models))
    for part in client.chat(model, [question], stream=True):
        print(part.message.content, end="", flush=True)
    print()
except ollama.ResponseError as error:
    # An object (code, message, request_id), though the package declares a text;
    # a text where a stream fails in its middle, and the status is then -1.
    sys.exit(f"{error.status_code}: {error.error}")
