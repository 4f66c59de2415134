"""What Envoy tells of a request that has ended is recorded, and settled, once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf, nan
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from authz.core.metering import Ending, Finished, Used
from authz.edge.access_log import AccessLog
from authz.edge.model_list import ModelLists
from authz.edge.server import serving
from authz.local.process import private_directory
from authz.metrics import Metrics
from authz.pb import access_log_pb2 as pb
from tests.access_logs import COUNTS, LIMITED, PERIODIC, VERDICT, entry, message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from authz.edge.check import Check
    from authz.limiter import Limiter

KEY_ID = VERDICT["key_id"]
ID = "an-id"
CALL = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
BUSY_S = 10.0
GRACE_S = 2.0


@dataclass
class Told:
    """A Limiter and a UsageLog that remember what they are told."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    noted: list[tuple[Finished, Used]] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    broken: set[str] = field(default_factory=set)
    running: int = 0
    most_running: int = 0

    async def settle(self, *what: object) -> None:
        if what[1] in self.broken:
            msg = "a bug"
            raise RuntimeError(msg)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        self.calls.append(("settle", *what))

    async def renew(self, *what: object) -> None:
        self.calls.append(("renew", *what))

    def note(self, finished: Finished, used: Used) -> None:
        self.noted.append((finished, used))
        self.first.set()

    def log(self) -> AccessLog:
        limiter = cast("Limiter", self)
        return AccessLog(
            limiter, self, lambda: datetime.now(UTC), Metrics(self.registry)
        )

    @property
    def unreadable(self) -> float | None:
        name = "authz_usage_dropped_total"
        return self.registry.get_sample_value(name, {"reason": "unreadable"})

    async def sent(self, *messages: bytes) -> None:
        """Send messages as one stream."""

        async def stream() -> AsyncIterator[bytes]:
            for one in messages:
                yield one

        await self.log().stream(stream(), None)


async def told(*messages: bytes) -> Told:
    """Send messages as one stream; return what came of them."""
    found = Told()
    await found.sent(*messages)
    return found


async def used(**given: Any) -> tuple[Finished, Used]:  # noqa: ANN401 - any field
    """Send one entry of a request that was allowed; return what is recorded."""
    found = await told(message(entry(**given), name="authz.usage"))
    ((finished, used),) = found.noted
    return finished, used


async def test_a_finished_request_is_recorded() -> None:
    before = int(time.time())
    finished, used_ = await used(request_id=ID)
    assert before <= finished.began <= time.time()
    assert finished == Finished(
        request_id=ID,
        key_id=KEY_ID,
        owner=VERDICT["owner"],
        endpoint=VERDICT["endpoint"],
        model=VERDICT["model"],
        began=finished.began,
        status=200,
        duration_ms=1500,
        first_byte_ms=250,
        request_bytes=41,
        input_tokens=20,
        output_tokens=300,
        chunks=9,
        ended=True,
    )
    assert used_ == Used(Ending.OK, 20, 300, estimated=False, settled=320)


@pytest.mark.parametrize(
    ("flag", "seen", "ending"),
    [
        ("downstream_connection_termination", {}, Ending.ABORTED),
        ("downstream_remote_reset", {}, Ending.ABORTED),
        ("upstream_connection_termination", {}, Ending.FAILED),
        ("stream_idle_timeout", {}, Ending.FAILED),
        ("upstream_max_stream_duration_reached", {"ended": True}, Ending.OK),
    ],
)
async def test_envoys_flags_tell_who_ended_it(
    flag: str, seen: dict[str, Any], ending: Ending
) -> None:
    _, used_ = await used(seen=seen, **{flag: True})
    assert used_.ending is ending


async def test_the_limits_of_a_key_get_back_what_a_request_did_not_use() -> None:
    found = await told(
        message(entry(LIMITED, request_id="a"), name="authz.usage"),
        message(entry(LIMITED, request_id="b", kind=PERIODIC)),
        message(entry(LIMITED, {}, request_id="c", downstream_remote_reset=True)),
        message(entry(VERDICT, request_id="d"), entry(kind=PERIODIC)),
    )
    assert len(found.calls) == 3
    assert {*found.calls} == {
        ("settle", KEY_ID, "a", 320),
        ("renew", KEY_ID, "b"),
        ("settle", KEY_ID, "c", None),
    }
    assert [finished.request_id for finished, _ in found.noted] == ["a", "c", "d"]


async def test_a_client_that_left_before_the_verdict_holds_nothing() -> None:
    left = entry(None, {}, request_id=ID)
    found = await told(message(left, name="authz.gone"))
    assert found.calls == [("settle", None, ID, 0)]
    assert found.noted == []


async def test_many_are_settled_together_but_not_too_many() -> None:
    many = [entry(LIMITED) for _ in range(200)]
    found = await told(message(*many, name="authz.usage"))
    assert len(found.calls) == len(found.noted) == 200
    assert 1 < found.most_running <= 32


async def test_a_request_that_cannot_be_settled_ends_nothing() -> None:
    found = Told(broken={"first"})
    entries = [entry(LIMITED, request_id=one) for one in ("first", "second")]
    await found.sent(message(*entries, name="authz.usage"))
    assert [call[2] for call in found.calls] == ["second"]


async def test_logs_of_other_names_are_nobodys() -> None:
    found = await told(message(entry()), message(entry(), name="another"))
    assert (found.calls, found.noted, found.unreadable) == ([], [], 0)


@pytest.mark.parametrize(
    "verdict",
    [
        {"key_id": None},
        {"key_id": 7},
        {"key_id": "x"},
        {"key_id": KEY_ID.upper()},
        {"key_id": KEY_ID + "\n"},
        {"key_id": {"key_id": KEY_ID}},
    ],
)
async def test_what_belongs_to_no_key_is_dropped_and_counted(
    verdict: dict[str, Any],
) -> None:
    found = await told(message(entry(LIMITED | verdict), name="authz.usage"))
    assert (found.calls, found.noted, found.unreadable) == ([], [], 1)


@pytest.mark.parametrize("request_id", ["", "x" * 129])
async def test_what_has_no_id_is_dropped_and_counted(request_id: str) -> None:
    ended = entry(LIMITED, request_id=request_id)
    found = await told(message(ended, name="authz.usage"))
    assert (found.calls, found.noted, found.unreadable) == ([], [], 1)


@pytest.mark.parametrize("absurd", [-1, nan, inf, 1e300, "7", True, None, [], {"a": 1}])
async def test_absurd_numbers_are_none(absurd: object) -> None:
    seen = dict.fromkeys(COUNTS, absurd) | {"ended": True}
    _, used_ = await used(seen=seen)
    assert used_ == Used(Ending.OK, 11, 0, estimated=True, settled=11)


async def test_an_input_counts_as_what_it_was_taken_for_when_it_was_checked() -> None:
    _, used_ = await used(
        verdict=VERDICT | {"input_estimate": 1011}, seen={"chunks": 3}
    )
    assert (used_.input_tokens, used_.output_tokens) == (1011, 3)


@pytest.mark.parametrize("absurd", [-1, nan, inf, 1e300, "7", True, None, [], {"a": 1}])
async def test_an_absurd_estimate_is_none(absurd: object) -> None:
    verdict = VERDICT | {"input_estimate": absurd}
    _, used_ = await used(verdict=verdict, seen={"ended": True})
    assert used_ == Used(Ending.OK, 11, 0, estimated=True, settled=11)


@pytest.mark.parametrize("odd", ["\0", "x" * 2000, "\U0001f600" * 400, 7, None, {}])
async def test_texts_that_could_not_be_kept_are_empty(odd: object) -> None:
    texts = dict.fromkeys(("owner", "endpoint", "model"), odd)
    finished, _ = await used(verdict=VERDICT | texts)
    assert (finished.owner, finished.endpoint, finished.model) == ("", "", "")


@pytest.mark.parametrize("far", [timedelta(days=-8), timedelta(minutes=6)])
async def test_a_time_that_cannot_be_is_now(far: timedelta) -> None:
    odd = entry()
    assert odd.common_properties is not None
    odd.common_properties.start_time = datetime.now(UTC) + far
    found = await told(message(odd, name="authz.usage"))
    assert abs(found.noted[0][0].began - time.time()) < BUSY_S


@pytest.mark.parametrize("odd", [b"\xff", b"\x0a\x05", b"\x12\x04\x0a\x02\x0a\xff"])
async def test_a_message_that_cannot_be_read_ends_nothing(odd: bytes) -> None:
    found = await told(
        message(entry(), name="authz.usage"), odd, message(entry(LIMITED))
    )
    assert len(found.noted) == 2
    assert found.unreadable == 1


@pytest.mark.parametrize("odd", [b"\x1a\x02\xff\xff", b"\x1a\x7f", b"\xff", b"\x11"])
async def test_a_value_that_cannot_be_read_is_none_and_spoils_no_other(
    odd: bytes,
) -> None:
    whole = pb.StreamAccessLogsMessage.FromString(
        message(entry(LIMITED), entry(LIMITED), name="authz.usage")
    )
    first, second = (one.common_properties for one in whole.http_logs.log_entry)
    verdict = first.metadata.filter_metadata["envoy.filters.http.ext_authz"].fields
    seen = first.metadata.filter_metadata["authz.usage"].fields
    verdict["owner"] = verdict["model"] = first.response_flags = odd
    seen["input_tokens"] = seen["ended"] = odd
    spoilt = second.metadata.filter_metadata["envoy.filters.http.ext_authz"].fields
    spoilt["key_id"] = odd
    found = await told(whole.SerializeToString())
    ((finished, used_),) = found.noted
    assert (finished.owner, finished.model, finished.input_tokens) == ("", "", None)
    assert used_.ending is Ending.FAILED
    assert found.unreadable == 1


async def test_texts_of_one_request_are_not_taken_for_anothers() -> None:
    owners = ["a", "b", "a", "x" * 401, "x" * 400, "", "b"]
    found = await told(
        message(*(entry(VERDICT | {"owner": o}) for o in owners), name="authz.usage")
    )
    kept = [finished.owner for finished, _ in found.noted]
    assert kept == ["a", "b", "a", "", "x" * 400, "", "b"]


@given(st.binary(max_size=30), st.integers(0, 400))
async def test_whatever_is_in_a_message_is_read_or_dropped(odd: bytes, at: int) -> None:
    whole = message(entry(LIMITED), name="authz.usage")
    await told(whole[:at] + odd + whole[at:], whole)


async def test_fields_of_another_version_are_passed_over() -> None:
    whole = pb.StreamAccessLogsMessage.FromString(
        message(entry(request_id=ID), name="authz.usage")
    )
    later = b"\xfa\x3f\x03new"  # field 1023
    common = whole.http_logs.log_entry[0].common_properties
    common.MergeFromString(later)
    found = await told(whole.SerializeToString() + later)
    assert found.noted[0][1].settled == 320


async def test_the_end_waits_for_no_stream_and_takes_in_what_was_sent() -> None:
    found = Told()
    logs, check = found.log(), cast("Check", SimpleNamespace(answer=None))
    with private_directory("authz-logs-") as folder:
        socket = folder / "authz-0.sock"
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            async with serving(check, ModelLists(), logs, socket):
                stream: Any = channel.stream_unary(CALL)()
                await stream.write(message(entry(), name="authz.usage"))
                await asyncio.wait_for(found.first.wait(), BUSY_S)
                for _ in range(50):
                    await stream.write(message(entry()))
                ends = time.monotonic()
            assert time.monotonic() - ends < GRACE_S
            assert await stream == b""
    assert len(found.noted) == 51
