"""What a request asks of the machine, and how much of that a key may ask for.

A request is read into amounts by name; a key's parameters are bounds by the same
names. Ollama 0.33: api/types.go, openai/openai.go, openai/responses.go,
anthropic/anthropic.go, server/sched.go. docs/parameters.md has the table for people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf

from authz.core.allowlist import Allowlist, canonical_pattern

Amounts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rule:
    """The bounds on one amount in the two presets, and why there is one."""

    default: str
    strict: str
    why: str


# An amount that is not asked for is not judged, but num_predict: -1 where it is
# left out. Flags are 1 where they are set.
RULES: dict[str, Rule] = {
    "keep_alive": Rule(
        "10s..forever",
        "1m..30m",
        "a model that leaves memory at once, or never, does so for everybody",
    ),
    "load": Rule("any", "never", "an empty prompt loads a model and evicts another"),
    "unload": Rule("never", "never", "it takes the model away from everybody"),
    "num_ctx": Rule(
        "512..262144",
        "2048|4096|8192|16384|32768",
        "memory; and each change of it loads the model anew, for everybody",
    ),
    "num_gpu": Rule("..-1", "..-1", "another value loads the model anew"),
    "num_thread": Rule("0", "0", "another value loads the model anew"),
    "num_batch": Rule("512", "never", "set at all, it loads the model anew; n8n does"),
    "main_gpu": Rule("0", "never", "set at all, it loads the model anew; n8n does"),
    "use_mmap": Rule("1", "never", "set at all, it loads the model anew; n8n does"),
    "draft_num_predict": Rule("never", "never", "it loads the model anew"),
    "shift": Rule("never", "never", "it loads the model anew"),
    "repeat_last_n": Rule("-1..262144", "-1..8192", "four bytes of memory for each"),
    "num_predict": Rule("any", "1..8192", "how long one request may keep the model"),
    "text_bytes": Rule("any", "..262144", "time and memory of a prompt"),
    "messages": Rule("any", "..256", "those that do not fit are taken out one by one"),
    "tools": Rule("any", "..64", "their schemas become a grammar"),
    "inputs": Rule(
        "..2048", "..128", "each input of an embedding is worked on at once"
    ),
    "input_bytes": Rule("..1048576", "..32768", "time and memory of one input"),
    "images": Rule("..32", "..4", "each image costs about as much as a long prompt"),
    "image_bytes": Rule("..16777216", "..5242880", "memory of one image"),
    "image_pixels": Rule(
        "..50000000", "..16000000", "a small file can unfold into gigabytes"
    ),
    "sounds": Rule("any", "never", "a small file can unfold into hours"),
    "stops": Rule("..64", "..8", "each is looked for after every token"),
    "stop_bytes": Rule("..1024", "..128", "each is looked for after every token"),
    "format_bytes": Rule("..65536", "..8192", "a schema becomes a grammar"),
    "context_tokens": Rule("..262144", "..32768", "time and memory of a prompt"),
    "template": Rule("any", "never", "it replaces the words that the operator chose"),
    "raw": Rule("any", "never", "it leaves out the words that the operator chose"),
    "system": Rule("any", "never", "it replaces the words that the operator chose"),
    "web_search": Rule("any", "never", "the model server itself calls the internet"),
}
PRESETS = ("default", "strict")

ANY, NEVER, FOREVER = "any", "never", "forever"
_BETWEEN = ".."
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_MOST_LIMITS = 200


@dataclass(frozen=True, slots=True)
class Bound:
    """Ranges, their ends included; an amount must lie in one."""

    ranges: tuple[tuple[float, float], ...]

    def admits(self, amount: float) -> bool:
        """Tell whether an amount lies in one of the ranges."""
        return any(low <= amount <= high for low, high in self.ranges)


# Most of the bounds of most keys; what it admits need not be asked.
_ANY = Bound(((-inf, inf),))


@dataclass(frozen=True)
class Parameters:
    """What a key may ask for: a preset, and limits in its place.

    ``limits`` are (name, canonical pattern of models or "", bound) as texts.
    """

    preset: str = PRESETS[0]
    limits: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        limits = (
            f"{name}@{models}={bound}" if models else f"{name}={bound}"
            for name, models, bound in self.limits
        )
        return ",".join((self.preset, *limits))

    def first_beyond(self, amounts: Amounts, model: str | None) -> str | None:
        """Return the name of an amount that is not admitted, None if all are."""
        bounds = self._bounds
        if self._for_models and model:
            bounds = bounds | {
                name: bound
                for models, name, bound in self._for_models
                if models.allows(model)
            }
        for name, amount in amounts.items():
            bound = bounds[name]
            if bound is not _ANY and not bound.admits(amount):
                return name
        return None

    @cached_property
    def _bounds(self) -> dict[str, Bound]:
        texts = {name: getattr(rule, self.preset) for name, rule in RULES.items()}
        texts |= {name: bound for name, models, bound in self.limits if not models}
        return {name: _parse_bound(name, text) for name, text in texts.items()}

    @cached_property
    def _for_models(self) -> tuple[tuple[Allowlist, str, Bound], ...]:
        return tuple(
            (Allowlist((models,)), name, _parse_bound(name, bound))
            for name, models, bound in self.limits
            if models
        )

    def in_force(self) -> dict[str, str]:
        """Return the bounds as texts, by name (``name@models`` for some models)."""
        texts = {name: getattr(rule, self.preset) for name, rule in RULES.items()}
        for name, models, bound in self.limits:
            texts[f"{name}@{models}" if models else name] = bound
        return texts


@lru_cache(maxsize=1024)
def parse_parameters(text: str) -> Parameters:
    """Read ``PRESET[,NAME[@MODELS]=BOUND…]``. Raises ValueError, for people.

    A bound is ``any``, ``never``, or values and ranges as in ``-1|1..8192``, whose
    ends may be left out; those of keep_alive are durations or ``forever``.
    """
    preset, *limits = (part.strip() for part in text.split(","))
    if preset not in PRESETS:
        msg = f"{preset!r} is not {' or '.join(PRESETS)}"
        raise ValueError(msg)
    if len(limits) > _MOST_LIMITS:
        msg = f"more than {_MOST_LIMITS} limits"
        raise ValueError(msg)
    read = tuple(map(_parse_limit, limits))
    places = [(name, models) for name, models, _ in read]
    if len(set(places)) < len(places):
        msg = "the same limit is given twice"
        raise ValueError(msg)
    return Parameters(preset, read)


def _parse_limit(text: str) -> tuple[str, str, str]:
    place, _, bound = text.partition("=")
    name, at, models = place.partition("@")
    pattern = canonical_pattern(models) if at else ""
    if name not in RULES:
        msg = f"{name!r} is none of {', '.join(RULES)}"
        raise ValueError(msg)
    if pattern is None:
        msg = f"{models!r} is no model name or pattern"
        raise ValueError(msg)
    _parse_bound(name, bound)
    return name, pattern, bound


def _parse_bound(name: str, text: str) -> Bound:
    if text == NEVER:
        return Bound(())
    if text == ANY:
        return _ANY
    return Bound(tuple(_parse_range(name, part) for part in text.split("|")))


def _parse_range(name: str, text: str) -> tuple[float, float]:
    low, between, high = text.partition(_BETWEEN)
    if not between:
        amount = _parse_amount(name, text)
        return amount, amount
    ends = (
        _parse_amount(name, low) if low else -inf,
        _parse_amount(name, high) if high else inf,
    )
    if text == _BETWEEN or ends[0] > ends[1]:
        msg = f"{name}: {text!r} is no range"
        raise ValueError(msg)
    return ends


def _parse_amount(name: str, text: str) -> float:
    if name == "keep_alive":
        if text == FOREVER:
            return inf
        duration = re.fullmatch(r"([0-9]{1,9})([smh])", text)
        if duration:
            return int(duration[1]) * _SECONDS[duration[2]]
        msg = f"keep_alive: {text!r} is no duration as in 30s, 5m or 24h, or forever"
        raise ValueError(msg)
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        return int(text)
    msg = f"{name}: {text!r} is no whole number, {ANY} or {NEVER}"
    raise ValueError(msg)
