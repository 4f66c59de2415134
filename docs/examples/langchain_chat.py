"""Chat and embed with LangChain; GATEWAY_URL and GATEWAY_KEY: where and as whom."""

import os
import sys

import ollama
import openai
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI

url, key = os.environ["GATEWAY_URL"], os.environ["GATEWAY_KEY"]
model = sys.argv[1] if len(sys.argv) > 1 else "llama3.1"
native = {
    "base_url": url,
    "client_kwargs": {"headers": {"Authorization": f"Bearer {key}"}},
}

try:
    for part in ChatOllama(model=model, **native).stream("Hello"):
        print(part.text, end="", flush=True)
    print()
    vector = OllamaEmbeddings(model="nomic-embed-text", **native).embed_query("Hello")
    print(len(vector), "numbers")
    # The same by OpenAI's routes: this one asks again by itself after a 429 or a 503.
    print(ChatOpenAI(model=model, base_url=f"{url}/v1", api_key=key).invoke("Hi").text)
except ollama.ResponseError as error:
    sys.exit(f"{error.status_code}: {error.error}")
except openai.APIStatusError as error:
    sys.exit(f"{error.status_code} {error.code}: {error} ({error.request_id})")
