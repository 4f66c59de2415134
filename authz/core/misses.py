"""How many keys that nobody knows may come from one address. Pure."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

_BURST_S = 1.0  # this long a source may be ahead of its rate
_MOST_LATE = 8  # misses that were under way when the share was used up
_MOST_SOURCES = 10_000


class Misses:
    """A token bucket for every source: an IPv4 address or an IPv6 network.

    A miss costs ``1 / per_s`` seconds of debt, and time pays. The table is bounded:
    the source that missed longest ago is forgotten first.
    """

    def __init__(self, per_s: float, ipv6_prefix: int = 64) -> None:
        self._ipv6_host_bits = 128 - ipv6_prefix
        self._price_s = 1 / per_s
        # Half a miss less or more, as sums of fractions are not exact.
        self._share_s = max(_BURST_S - self._price_s / 2, self._price_s / 2)
        self._most_debt_s = _BURST_S + _MOST_LATE * self._price_s
        self._paid_at: dict[int, float] = {}

    def exceeded(self, address: str, now: float) -> bool:
        """Tell whether a source has had its share."""
        return self._debt_s(self._source(address), now) > self._share_s

    def count(self, address: str, now: float) -> None:
        """Charge a source for a miss."""
        source = self._source(address)
        debt_s = min(self._debt_s(source, now) + self._price_s, self._most_debt_s)
        self._paid_at.pop(source, None)
        if len(self._paid_at) >= _MOST_SOURCES:
            del self._paid_at[next(iter(self._paid_at))]
        self._paid_at[source] = now + debt_s

    def _debt_s(self, source: int, now: float) -> float:
        debt_s = self._paid_at.get(source, now) - now
        # Nobody can owe more: the clock was set back, and nobody shall wait for it.
        return debt_s if 0 < debt_s <= self._most_debt_s else 0.0

    def _source(self, address: str) -> int:
        """Return what is counted together; whatever is no address is one source."""
        try:
            found = ip_address(address)
        except ValueError:
            return -1
        if not isinstance(found, IPv6Address):
            return int(found)
        return int(found.ipv4_mapped or int(found) >> self._ipv6_host_bits)
