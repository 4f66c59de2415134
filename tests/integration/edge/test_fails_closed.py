"""Whatever breaks in gateway.lua, no byte of the model server's error gets out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import rows
from tests.gateway import own_gateway
from tests.raw import http1
from tests.rows import assert_row
from tests.upstream import answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.raw import Answer
    from tests.rows import Row
    from tests.upstream import RawUpstream

# Makes the n-th call that the script does for a response fail, where n is given by
# the model server. Three things cannot fail but by Envoy's own fault, and are what
# the script falls back on: pcall, setting bytes, and stepping to the next chunk.
FAULT = """
local original = envoy_on_response
local SOLID = { pcall = true, setBytes = true, ["(for generator)"] = true }
SOLID.original = true
function envoy_on_response(handle)
  local left = tonumber(handle:headers():get("x-break-at") or "0")
  local function count()
    local called = debug.getinfo(2, "n").name
    if SOLID[called] then return end
    left = left - 1
    if left == 0 then
      debug.sethook()
      error("broken on purpose")
    end
  end
  jit.off()
  debug.sethook(count, "c")
  original(handle)
  debug.sethook()
end
"""
SECRET = b"/root/secret"
STEPS = 120
STREAM_STEPS = 400


@pytest.fixture(scope="module")
async def broken(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway[RawUpstream]]:
    def break_script(directory: Path) -> None:
        with (directory / "gateway.lua").open("a") as script:
            script.write(FAULT)

    logs = tmp_path_factory.mktemp("broken")
    async with own_gateway(stores, logs, break_script) as gateway:
        yield gateway


@pytest.fixture(scope="module", params=["", "x = 1", "envoy_on_response = nil"])
async def useless(
    request: pytest.FixtureRequest,
    stores: Stores,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Gateway[RawUpstream]]:
    def write_script(directory: Path) -> None:
        (directory / "gateway.lua").write_text(request.param)

    logs = tmp_path_factory.mktemp("useless")
    async with own_gateway(stores, logs, write_script) as gateway:
        yield gateway


@pytest.mark.parametrize("status", [200, 500])
async def test_without_a_working_script_no_answer_gets_out(
    useless: Gateway[RawUpstream], status: int
) -> None:
    key = await useless.new_key()
    useless.upstream.script = answer(status, SECRET)
    assert_row(await ask(useless, key), rows.UPSTREAM)
    useless.upstream.script = answer(status)
    assert (await ask(useless, key, b"HEAD")).status == rows.UPSTREAM.status


async def ask(
    gateway: Gateway[RawUpstream], key: str, method: bytes = b"GET"
) -> Answer:
    return await http1(
        gateway.port,
        method + b" /api/version HTTP/1.1\r\nhost: a\r\nauthorization: Bearer "
        b"%b\r\n\r\n" % key.encode(),
        head=method == b"HEAD",
    )


def at_step(step: int, script: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Tell the script where to break, by a header of the answer."""
    fields, end, body = script[0].partition(b"\r\n\r\n")
    return (b"%b\r\nx-break-at: %d%b%b" % (fields, step, end, body), *script[1:])


@pytest.mark.parametrize(
    ("status", "row"),
    [
        (302, rows.UPSTREAM),
        (400, rows.INVALID),
        (404, rows.NO_MODEL),
        (500, rows.UPSTREAM),
        (503, rows.UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_error_becomes_a_502_wherever_the_script_breaks(
    broken: Gateway[RawUpstream], status: int, row: Row, method: bytes
) -> None:
    head = method == b"HEAD"
    script = answer(status, b"" if head else SECRET)
    key = await broken.new_key()
    for step in range(1, STEPS):
        broken.upstream.script = at_step(step, script)
        answered = await ask(broken, key, method)
        took = row if answered.status == row.status else rows.UPSTREAM
        assert_row(answered, took, head=head)
    # So many steps that the last lies behind the script's end.
    broken.upstream.script = at_step(STEPS, script)
    assert_row(await ask(broken, key, method), row, head=head)


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "text/event-stream"])
async def test_a_stream_lets_no_error_out_wherever_the_script_breaks(
    broken: Gateway[RawUpstream], content_type: str
) -> None:
    prefix = b"data: " if content_type == "text/event-stream" else b""
    error = prefix + b'{"error":"%b"}\n' % SECRET
    whole = stream(content_type, [prefix + b'{"n":1}\n', error])
    key = await broken.new_key()
    for step in range(1, STREAM_STEPS):
        broken.upstream.script = at_step(step, whole)
        answered = await ask(broken, key)
        assert answered.status in {200, rows.UPSTREAM.status}, step
        assert SECRET not in answered.body, step
    broken.upstream.script = at_step(STREAM_STEPS, whole)
    answered = await ask(broken, key)
    assert answered.body == prefix + b'{"n":1}\n' + prefix + (
        b'{"error":"The model server failed."}\n'
    )


async def test_a_document_is_whole_or_an_error_wherever_the_script_breaks(
    broken: Gateway[RawUpstream],
) -> None:
    script = answer(200, b'{"done":true}')
    key = await broken.new_key()
    for step in range(1, STREAM_STEPS):
        broken.upstream.script = at_step(step, script)
        answered = await ask(broken, key)
        if answered.status == 200:
            assert answered.body == b'{"done":true}', step
            assert answered.header("set-cookie") is None, step
        else:
            assert_row(answered, rows.UPSTREAM)
    broken.upstream.script = at_step(STREAM_STEPS, script)
    assert (await ask(broken, key)).status == 200
