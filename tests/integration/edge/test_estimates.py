"""What a request is charged whose answer never told what it cost."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from tests.images import png
from tests.integration.edge.test_limits import STREAM, client, recorded

if TYPE_CHECKING:
    from tests.gateway import Gateway, Standin

PHOTO = base64.b64encode(png(640, 480) + bytes(7 << 20)).decode()
LOOK = {"role": "user", "content": "What is this?", "images": [PHOTO]}
TOKENS = 1_100  # of one image and a little text; its bytes would be 2.4 million


async def test_a_large_image_is_charged_as_an_image_when_its_answer_is_left(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key(limits="tpm=100000")
    await gateway.upstream.behave(chunks=100_000, chunk_delay_s=0.05)
    async with client(gateway, key) as calls:
        body = STREAM | {"messages": [LOOK]}
        async with calls.stream("POST", "/api/chat", json=body) as answer:
            assert answer.status_code == 200
            await anext(answer.aiter_lines())
        row = await recorded(gateway.database_url, key)
        left = (await calls.get("/api/version")).headers["x-ratelimit-remaining-tokens"]
    assert (row["requests"], row["aborted"], row["estimated"]) == (1, 1, 1)
    assert 1_000 <= row["input_tokens"] <= TOKENS
    assert int(left) == 100_000 - row["input_tokens"] - row["output_tokens"]
