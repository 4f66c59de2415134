"""Chat with the `anthropic` package; GATEWAY_URL, GATEWAY_KEY: where and as whom."""

import os
import sys

import anthropic

client = anthropic.Anthropic(
    base_url=os.environ["GATEWAY_URL"], api_key=os.environ["GATEWAY_KEY"]
)
model = sys.argv[1] if len(sys.argv) > 1 else "llama3.1"

try:
    with client.messages.stream(
        model=model,
        max_tokens=200,
        messages=[{"role": "user", "content": "Hello"}],
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
        print()
        ended = stream.get_final_message().stop_reason is not None
except anthropic.APIStatusError as error:
    sys.exit(f"{error.status_code}: {error} ({error.request_id})")
if not ended:  # Ollama says nothing when a model fails in the middle of a stream
    sys.exit("the answer is incomplete")
