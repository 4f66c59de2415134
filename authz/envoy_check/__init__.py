"""Does a set of Envoy's files keep what the gateway promises? Needs the extra `check`.

Files become typed messages (source, reader), these one configuration (config), and
each rule says what in it is against it, and where.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yaml
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryResponse

from authz.envoy_check import rules
from authz.envoy_check.config import Config
from authz.envoy_check.findings import RULES, Place
from authz.envoy_check.reader import UNREADABLE, Reader
from authz.envoy_check.source import YAML, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from authz.envoy_check.findings import Finding

__all__ = ["RULES", "Report", "check", "rules"]


_MISSED = frozenset({"no-gateway", "not-given", "routes-unseen", "unknown-cluster"})


@dataclass(slots=True)
class Report:
    """What was found, by file and line, and what was not looked at."""

    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        """Whether there is a configuration that Envoy can be asked about."""
        unread = {YAML.name, UNREADABLE.name}
        return bool(self.files) and not any(
            each.rule in unread for each in self.findings
        )


def check(contents: Mapping[str, bytes]) -> Report:
    """Look at files, given by name, as the one configuration that they are."""
    report = Report()
    reader = Reader(report.findings)
    config = Config(reader)
    for name, content in contents.items():
        root, findings = parsed(name, content)
        report.findings += findings
        keys = {key.value for key, _ in root.value} if root else set()
        if {"apiVersion", "kind"} <= keys:
            report.passed_over.append(name)
            continue
        report.files.append(name)
        config.texts[name] = content.decode(errors="replace")
        if isinstance(root, yaml.MappingNode):
            kind = DiscoveryResponse if "resources" in keys else Bootstrap
            config.add(name, reader.read(name, kind, root))
    config.connect()
    # What a file that cannot be read would have held is not missed as well.
    unread = report.files != config.files
    for rule in RULES.values():
        if rule.look and not (unread and rule.name in _MISSED):
            report.findings += [rule.at(*problem) for problem in rule.look(config)]
    if not report.files:
        what = "None of these files is Envoy's."
        report.findings += [
            RULES["no-gateway"].at(Place(name, 1), what) for name in contents
        ]
    report.findings[:] = sorted(set(report.findings))
    return report
