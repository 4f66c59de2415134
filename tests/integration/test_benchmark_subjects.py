"""What the benchmark compares: each subject starts, answers and does what it is for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from authz.adapters.postgres import connected
from benchmarks import subjects
from benchmarks.processes import cpu_of_families, memory_of_families
from benchmarks.subjects import (
    BODY,
    COLD,
    ENVOY_ALONE,
    FLOOR,
    LIMITS,
    NATIVE_KEYS,
    PATH,
    PLAIN,
    RATES,
    WARM,
)
from benchmarks.wrk import Load, LoadFailed, measure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from benchmarks.subjects import Site, Subject

# LiteLLM has a venv of its own, which only `make bench` makes.
HERE = (ENVOY_ALONE, NATIVE_KEYS, FLOOR, WARM, RATES, LIMITS, COLD, PLAIN)
FEW = Load(connections=2, seconds=1, per_s=10)
# As many as the tests ask with, and those that are skipped after a sample.
COLD_KEYS = 400


@dataclass(frozen=True)
class Running:
    site: Site
    subjects: Mapping[str, Subject]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.subjects[name].target.port}"


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Running]:
    async with subjects.site(COLD_KEYS) as site:
        yield Running(site, {name: await subjects.build(site, name) for name in HERE})


async def ask(
    url: str,
    key: str | None,
    body: bytes = BODY,
    path: str = PATH,
) -> httpx.Response:
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient() as client:
        return await client.post(f"{url}{path}", content=body, headers=headers)


@pytest.mark.parametrize("name", HERE)
async def test_a_subject_answers_what_it_is_measured_by(
    running: Running, name: str
) -> None:
    subject = running.subjects[name]
    before = cpu_of_families(subject.pids)
    sample = await measure(subject.target, FEW)
    after = cpu_of_families(subject.pids)
    assert sample.requests == 10
    assert sample.p99_ms >= sample.p50_ms > 0
    assert all(after[process] >= before[process] for process in subject.pids)
    assert all(memory_of_families(subject.pids).values())


@pytest.mark.parametrize("name", HERE)
async def test_all_subjects_give_the_answer_of_the_same_model_server(
    running: Running, name: str
) -> None:
    keys = (running.subjects[name].target.folder / "keys").read_text().split()
    answer = await ask(running.url(name), keys[-1])
    assert answer.json()["choices"][0]["message"]["content"].startswith("Hello!")


async def test_cold_keys_are_asked_with_once(running: Running) -> None:
    target = running.subjects[COLD].target
    before = target.next_key
    await measure(target, FEW)
    assert target.next_key >= before + 10


async def test_a_sample_with_a_refusal_is_no_sample(
    running: Running, tmp_path: Path
) -> None:
    target = running.subjects[NATIVE_KEYS].target
    (tmp_path / "keys").write_text("nobody\n")
    (tmp_path / "body").write_bytes(BODY)
    refused = type(target)(target.port, tmp_path, target.path)
    with pytest.raises(LoadFailed):
        await measure(refused, FEW)


async def test_an_ext_authz_service_at_an_address_takes_the_place_of_ours(
    running: Running,
) -> None:
    """Nobody listens there: the same listener.yaml asks it, and fails closed."""
    peer = await running.site.behind_listener("peer", ("127.0.0.1", 9))
    answer = await ask(f"http://127.0.0.1:{peer.target.port}", running.site.key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


# The plain gateway would be quicker if it checked less.


async def refusal(
    running: Running,
    key: str | None,
    body: bytes = BODY,
    path: str = PATH,
) -> tuple[int, str]:
    answer = await ask(running.url(PLAIN), key, body, path)
    assert answer.headers["x-request-id"] == answer.json()["error"]["request_id"]
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("key", [None, "nz_nobody"])
async def test_the_plain_gateway_refuses_who_has_no_key(
    running: Running, key: str | None
) -> None:
    assert await refusal(running, key) == (401, "unauthorized")


@pytest.mark.parametrize(
    "change", ["revoked = true", "expires_at = now() - interval '1 second'"]
)
async def test_the_plain_gateway_refuses_keys_that_have_ended(
    running: Running, change: str
) -> None:
    key = f"key with {change}"
    async with connected(running.site.stores.database_url) as connection:
        await connection.execute(
            "INSERT INTO plain_keys (digest, models)"
            " VALUES (sha256($1::text::bytea), '{*}')",
            key,
        )
        await connection.execute(
            f"UPDATE plain_keys SET {change}"  # noqa: S608 - our own words
            " WHERE digest = sha256($1::text::bytea)",
            key,
        )
    assert await refusal(running, key) == (401, "unauthorized")


async def test_the_plain_gateway_refuses_other_models(running: Running) -> None:
    body = json.dumps({"model": "mistral", "messages": []}).encode()
    assert await refusal(running, running.site.key, body) == (403, "model_not_allowed")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":1}', b"[" * 100_000])
async def test_the_plain_gateway_refuses_bodies_that_it_cannot_read(
    running: Running, body: bytes
) -> None:
    assert await refusal(running, running.site.key, body) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/api/pull", "/v1/models", "/docs", "/openapi.json"])
async def test_the_plain_gateway_refuses_other_paths(
    running: Running, path: str
) -> None:
    assert await refusal(running, running.site.key, path=path) == (404, "not_found")


@pytest.mark.parametrize("name", [FLOOR, WARM])
async def test_who_waits_for_a_message_reads_it(running: Running, name: str) -> None:
    """Threads in between take a fifth more; a newer grpcio may want them again."""
    subject = running.subjects[name]
    before = nanoseconds_run(subject)
    await measure(subject.target, Load(connections=8, seconds=1))
    ran = nanoseconds_run(subject) - before
    # Without them 1 or 2 in a hundred, with them 10 to 20.
    assert ran["event_engine"] < ran.total() / 20


def nanoseconds_run(subject: Subject) -> Counter[str]:
    """Return what threads of the service have run so far, by their names."""
    ran: Counter[str] = Counter()
    for thread in Path(f"/proc/{subject.pids['service']}/task").iterdir():
        name = (thread / "comm").read_text().strip()
        ran[name] += int((thread / "schedstat").read_text().split()[0])
    return ran
