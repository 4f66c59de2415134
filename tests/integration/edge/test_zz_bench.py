from __future__ import annotations
import asyncio, json, random
from pathlib import Path
from tests.gateway import own_gateway
from tests.upstream import stream, chunk

N = 2000


def line(n):
    return (
        b'{"model":"llama3.1","created_at":"2025-01-01T00:00:00.%09dZ","message":{"role":"assistant","content":" hello"},"done":false}\n'
        % n
    )


def oa(n):
    return (
        b'data: {"id":"chatcmpl-%d","object":"chat.completion.chunk","created":1700000000,"model":"llama3.1","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":" hello"},"finish_reason":null}]}\n\n'
        % n
    )


def cpu(pid):
    return (
        sum(
            int((t / "schedstat").read_text().split()[0])
            for t in Path(f"/proc/{pid}/task").iterdir()
        )
        / 1e9
    )


def rss(pid):
    return int(
        [
            l
            for l in Path(f"/proc/{pid}/status").read_text().splitlines()
            if l.startswith("VmRSS")
        ][0].split()[1]
    )


EMB = (
    b'{"model":"m","embeddings":['
    + b",".join(
        b"[" + b",".join(b"%.9f" % random.gauss(0, 0.03) for _ in range(1024)) + b"]"
        for _ in range(830)
    )
    + b'],"prompt_eval_count":3}'
)


async def ask(g, key, n):
    r, w = await asyncio.open_connection("127.0.0.1", g.port)
    w.write(
        b'POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\ncontent-length: 20\r\n\r\n{"model":"llama3.1"}'
        % key.encode()
    )
    return r, w


async def one(stores, logs, lua):
    def edit(d):
        if lua:
            (d / "gateway.lua").write_text(Path(lua).read_text())

    async with own_gateway(stores, logs, edit) as g:
        key = await g.new_key()
        pid = g.envoy.process.pid
        res = {}
        for name, ct, f in (
            ("native", "application/x-ndjson", line),
            ("openai", "text/event-stream", oa),
        ):
            best = []
            for rep in range(6):
                got = asyncio.Event()

                async def nxt():
                    await got.wait()
                    got.clear()

                head, *_ = stream(ct, [])
                steps = []
                for i in range(N):
                    steps += [chunk(f(i + rep * N)), nxt]
                g.upstream.script = (head, *steps, b"0\r\n\r\n")
                r, w = await ask(g, key, 0)
                await r.readuntil(b"\r\n\r\n")
                c = cpu(pid)
                for i in range(N):
                    x = await r.readuntil(b"\n")
                    if ct[0] == "t":
                        await r.readuntil(b"\n")
                    got.set()
                await r.readuntil(b"0\r\n\r\n")
                best.append((cpu(pid) - c) / N * 1e6)
                w.close()
            res[name] = (min(best), sorted(best)[3])
        times = []
        for rep in range(6):
            g.upstream.script = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                % len(EMB)
                + EMB,
            )
            r, w = await ask(g, key, 0)
            await r.readuntil(b"\r\n\r\n")
            c = cpu(pid)
            await r.readexactly(len(EMB))
            times.append((cpu(pid) - c) * 1e3)
            w.close()
        res["emb ms"] = (min(times), sorted(times)[3])
        res["rss"] = rss(pid)
        return res


async def test_b(stores, tmp_path):
    for rep in range(2):
        for name, lua in (("before", "/tmp/w/lua/gateway.before.lua"), ("after", None)):
            d = tmp_path / f"{name}{rep}"
            d.mkdir()
            print("\n", name, await one(stores, d, lua))
