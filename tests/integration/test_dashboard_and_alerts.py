"""What the dashboard and the alerts ask for is there, in scrapes of a real gateway."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from authz.core.credential import mint
from authz.core.model import Reason
from authz.local.stack import got
from authz.metrics import ALLOWED
from tests.certificates import new_authority
from tests.gateway import own_gateway
from tests.live import tls_socket
from tests.upstream import answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.gateway import Gateway, Stores
    from tests.upstream import RawUpstream

    Labels = Mapping[str, str]

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/authz.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
TARGETS = [
    target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
QUERIES = sorted({*TARGETS, *(rule["expr"] for rule in RULES)})

CHAT = {"model": "llama3.1", "stream": False}
UNKNOWN = mint(b"never issued, and asked for".ljust(32))
BUSY_S = 20.0
# Prometheus gives these to every metric that it scrapes.
ITS_OWN = {"job", "instance"}


@dataclass
class Query:
    """What a query of PromQL names: metrics with their matchers, and labels."""

    metrics: list[tuple[str, list[tuple[str, str, str]]]] = field(default_factory=list)
    by: set[str] = field(default_factory=set)


def read(promql: str) -> Query:
    query = Query()

    def take_by(found: re.Match[str]) -> str:
        query.by.update(label.strip() for label in found[1].split(","))
        return " "

    rest = re.sub(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", take_by, promql)
    rest = re.sub(r"\[[^\]]*\]", " ", rest)
    metric = r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\{([^}]*)\})?"
    for name, matchers in re.findall(metric, rest):
        if name in {"or", "and", "unless"}:
            continue
        found = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers)
        query.metrics.append((name, found))
    return query


@dataclass
class Scraped:
    """The samples of both pages: the labels of each, by name."""

    samples: dict[str, list[Labels]] = field(default_factory=lambda: defaultdict(list))

    def add(self, page: str) -> None:
        # As it stands: the client library's parser gives counters another name.
        for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", page, re.MULTILINE):
            self.samples[name].append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))

    def labels(self, name: str) -> set[str]:
        return {label for labels in self.samples[name] for label in labels}


@pytest.fixture(scope="module")
async def scraped(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Scraped:
    """Return what both pages say after requests of every kind."""
    logs = tmp_path_factory.mktemp("scraped")
    async with own_gateway(stores, logs, another_door) as gateway:
        await _ask_for_everything(gateway)
        envoy = f"http://127.0.0.1:{await _metrics_port(gateway)}/stats/prometheus"
        ours = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
        async with httpx.AsyncClient() as client, asyncio.timeout(BUSY_S):
            while True:
                found = Scraped()
                for url in (ours, envoy):
                    found.add((await client.get(url)).text)
                # Last of all Envoy tells how a request has ended.
                if {"outcome": "failed", "endpoint": "/api/chat"} in found.samples[
                    "authz_requests_finished_total"
                ]:
                    return found


def another_door(directory: Path) -> None:
    """Add one with a certificate."""
    (directory / "tls").mkdir()
    certificate, key = new_authority(directory, "authority").issue(
        directory, "a.example"
    )
    certificate.rename(directory / "tls/tls.crt")
    key.rename(directory / "tls/tls.key")
    file = directory / "listener.yaml"
    config = yaml.safe_load(file.read_text())
    door = deepcopy(config["resources"][0])
    door["name"] = "door"
    door["filter_chains"][0]["transport_socket"] = tls_socket(directory)
    config["resources"].append(door)
    file.write_text(yaml.safe_dump(config))


async def _ask_for_everything(gateway: Gateway[RawUpstream]) -> None:
    key, limited = [
        await gateway.new_key(limits=limits) for limits in ("", "rpm=1,concurrency=1")
    ]
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for who in (key, limited, limited, UNKNOWN):
            headers = {"authorization": f"Bearer {who}"}
            await client.post("/api/chat", json=CHAT, headers=headers)
        await gateway.revoke(limited)
        gateway.upstream.script = answer(500)
        headers = {"authorization": f"Bearer {key}"}
        await client.post("/api/chat", json=CHAT, headers=headers)


async def _metrics_port(gateway: Gateway[Any]) -> int:
    where = gateway.run / "admin.sock"
    async with got(where, "/listeners?format=json") as response:
        listeners = (await response.json(content_type=None))["listener_statuses"]
    (metrics,) = [one for one in listeners if one["name"] == "metrics"]
    return int(metrics["local_address"]["socket_address"]["port_value"])


@pytest.mark.parametrize("promql", QUERIES)
async def test_every_metric_and_label_that_is_asked_for_is_in_a_real_scrape(
    scraped: Scraped, promql: str
) -> None:
    query = read(promql)
    known = set(ITS_OWN)
    assert query.metrics
    for name, matchers in query.metrics:
        assert scraped.samples[name], f"no {name}"
        known |= scraped.labels(name)
        for label, how, value in matchers:
            assert label in scraped.labels(name)
            if how == "=":
                values = {labels.get(label) for labels in scraped.samples[name]}
                assert value in values | set(_reasons(name, label))
    assert query.by <= known


def _reasons(name: str, label: str) -> Iterator[str]:
    """Yield what a label may be that no request of this test was refused for."""
    if (name, label) == ("authz_decisions_total", "reason"):
        yield from (reason.value for reason in Reason)


@pytest.mark.parametrize("promql", TARGETS)
def test_a_legend_names_labels_that_the_query_keeps(promql: str) -> None:
    targets = [t for p in DASHBOARD["panels"] for t in p.get("targets", [])]
    for target in targets:
        if target["expr"] == promql:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = read(promql).by or (ITS_OWN if "sum" not in promql else set())
            assert named <= kept


async def test_all_our_metrics_are_shown(scraped: Scraped) -> None:
    shown = {name for promql in TARGETS for name, _ in read(promql).metrics}
    ours = {name for name in scraped.samples if name.startswith("authz_")}
    counted = {name for name in ours if not name.endswith(("_created", "_sum"))}
    histograms = {name for name in counted if name.endswith("_bucket")}
    counted -= {name.replace("_bucket", "_count") for name in histograms}
    assert counted <= shown


async def test_labels_are_few_and_known(scraped: Scraped) -> None:
    reasons = {reason.value for reason in Reason} | {ALLOWED}
    assert {
        labels["reason"] for labels in scraped.samples["authz_decisions_total"]
    } <= reasons
    refused = {
        labels["reason"]: labels["endpoint"]
        for labels in scraped.samples["authz_decisions_total"]
        if labels["reason"] != ALLOWED
    }
    assert refused == {"key_unknown": "/api/chat", "limit_requests": "/api/chat"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_it_is_said_what_to_do(
    rule: dict[str, Any],
) -> None:
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"] == {"severity": "page"}
    assert rule["annotations"]["summary"].endswith(".")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
    assert anchors.count(anchor) == 1
    assert anchor == rule["alert"].lower()


TAKEN_MS = 1_795_000_000_000


@pytest.mark.parametrize(
    ("scrape", "paged"),
    [
        ({}, False),
        ({"envoy_cluster_manager_cds_update_time": TAKEN_MS - 5_000}, False),
        ({"envoy_cluster_manager_cds_update_time": TAKEN_MS - 21_000}, True),
        ({"envoy_http_rds_update_time": TAKEN_MS - 21_000}, True),
        ({"envoy_listener_manager_lds_update_time": TAKEN_MS - 21_000}, True),
        ({"envoy_http_rds_update_time": 0}, True),
        ({"envoy_sds_update_time": 0}, True),
        ({"envoy_http_rds_update_rejected": 1}, True),
        ({"envoy_http_rds_update_empty": 1}, True),
        ({"envoy_sds_key_rotation_failed": 1}, False),
    ],
)
def test_a_file_that_is_not_taken_pages_for_as_long_as_it_is_not(
    scrape: Mapping[str, int], *, paged: bool
) -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "EnvoyFileRefused"]
    promql = re.sub(r"\[\w+\]|ignoring \([^)]*\)", "", rule["expr"])
    usual = {
        name: TAKEN_MS if name.endswith("_time") else 0
        for name in re.findall(r"envoy_\w+", promql)
    }
    # Of one instance every aggregation is its value, and the rest is Python, too.
    of_one: dict[str, Any] = {"abs": abs}
    of_one |= dict.fromkeys(("max", "min", "sum", "increase"), int)
    assert eval(promql, of_one, {**usual, **scrape}) is paged  # noqa: S307


def test_the_dashboard_can_be_imported_anywhere() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("datasource", "datasource")
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        for source in (panel, *panel.get("targets", [])):
            if panel["type"] != "row":
                assert source["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize(
    ("promql", "metrics", "by"),
    [
        ("sum by (a, b) (rate(x_total[5m])) / y > 0.1", ["x_total", "y"], {"a", "b"}),
        ('absent(x{a="1",b=~"2"}) or max(y)', ["x", "y"], set()),
        ("histogram_quantile(0.9, sum by (le) (rate(x_bucket[$__i])))", ["x_bucket"],
         {"le"}),
    ],
)  # fmt: skip
def test_queries_are_read_right(promql: str, metrics: list[str], by: set[str]) -> None:
    query = read(promql)
    assert [name for name, _ in query.metrics] == metrics
    assert query.by == by
