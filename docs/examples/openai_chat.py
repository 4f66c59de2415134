"""Chat with the `openai` package; GATEWAY_URL and GATEWAY_KEY say where and as whom."""

import os
import sys

import openai

client = openai.OpenAI(
    base_url=f"{os.environ['GATEWAY_URL']}/v1", api_key=os.environ["GATEWAY_KEY"]
)
model = sys.argv[1] if len(sys.argv) > 1 else "llama3.1"

try:
    print("models:", *(found.id for found in client.models.list()))
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
    )
    ended = False
    for part in stream:
        print(part.choices[0].delta.content or "", end="", flush=True)
        ended = part.choices[0].finish_reason is not None
    print()
except openai.APIStatusError as error:
    sys.exit(f"{error.status_code} {error.code}: {error} ({error.request_id})")
if not ended:  # Ollama says nothing when a model fails in the middle of a stream
    sys.exit("the answer is incomplete")
