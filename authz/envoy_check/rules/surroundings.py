"""What stands around the gateway: the admin interface, secrets, other doors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    BootstrapDynamicResources,
)
from envoy_data_plane.envoy.config.cluster.v3 import ClusterEdsClusterConfig
from envoy_data_plane.envoy.extensions.filters.network.connection_limit.v3 import (
    ConnectionLimit,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: E501
    HttpConnectionManager,
    Rds,
)
from envoy_data_plane.envoy.extensions.filters.network.local_ratelimit.v3 import (
    LocalRateLimit,
)
from envoy_data_plane.envoy.extensions.filters.network.rbac.v3 import Rbac
from envoy_data_plane.envoy.extensions.filters.network.set_filter_state.v3 import (
    Config as SetFilterState,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    DownstreamTlsContext,
    GenericSecret,
    TlsCertificate,
    TlsSessionTicketKeys,
)

from authz.envoy_check.findings import Place, rule
from authz.envoy_check.secrets import SECRET
from authz.envoy_check.tls import checks_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message
    from envoy_data_plane.envoy.config.core.v3 import ConfigSource, Pipe
    from envoy_data_plane.envoy.config.listener.v3 import FilterChain
    from envoy_data_plane.envoy.config.route.v3 import RouteMatch
    from envoy_data_plane.google.protobuf import Struct

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

# They pass nothing on; what could not be read has been reported.
_KNOWN = (
    *(ConnectionLimit, HttpConnectionManager, LocalRateLimit, Rbac, SetFilterState),
    type(None),
)
_PAGES = {"/stats/prometheus", "/ready"}
# What envoy.yaml sets, for reasons that stand there: from the least to the most.
_RUNTIME: dict[str, tuple[float, float]] = {
    "envoy.reloadable_features.fixed_heap_use_allocated": (1, 1),
    "http.max_requests_per_io_cycle": (1, 10),
    "overload.premature_reset_total_stream_count": (1, 500),
}
_OTHERS_MAY = 0o077
_MODES = 0o1000
_SECRET_FIELDS: tuple[tuple[type[Message], str], ...] = (
    *((TlsCertificate, name) for name in ("private_key", "password", "pkcs12")),
    (TlsSessionTicketKeys, "keys"),
    (GenericSecret, "secret"),
)


@rule(
    "no-gateway",
    why="There is nothing here that the rules could judge.",
    mend="Give all files that Envoy reads at once.",
)
def no_gateway(config: Config) -> Iterator[Problem]:
    """Look for a listener that leads to a model server."""
    if not config.gateways and config.files:
        yield config.first, "No listener in these files leads to a model server."


@rule(
    "not-given",
    why="What is not among the files given cannot be checked.",
    mend="Give all files that Envoy reads, the bootstrap too, at once; have listeners,"
    " routes and clusters in files.",
)
def not_given(config: Config) -> Iterator[Problem]:
    """Look for parts of the configuration that are somewhere else."""
    if config.gateways and not config.bootstraps:
        yield config.first, "The bootstrap (envoy.yaml) is not among the files."
    dynamic = config.reader.all(BootstrapDynamicResources)
    sources: list[tuple[Message, str]] = [
        *((each, "lds_config") for each in dynamic),
        *((each, "cds_config") for each in dynamic),
        *((each, "config_source") for each in config.reader.all(Rds)),
        *((each, "eds_config") for each in config.reader.all(ClusterEdsClusterConfig)),
    ]
    for owner, name in sources:
        source: ConfigSource | None = getattr(owner, name)
        if source is not None and not config.given(source):
            yield config.place(owner, name), f"What {name} names is not given."
    for each in dynamic:
        yield from config.filled(each, "ads_config")


@rule(
    "same-name",
    why="Which of the two Envoy takes depends on where and when it reads them.",
    mend="Give each listener, cluster, route table and secret a name of its own.",
)
def same_name(config: Config) -> Iterator[Problem]:
    """Look for resources that hide behind the name of another."""
    for message, name in config.again:
        yield config.place(message, "name"), f"{name!r} is there already."


@rule(
    "admin-on-network",
    why="The admin interface asks for no password, shows the configuration and can stop"
    " Envoy; on a port, whoever shares the network or the pod reaches it.",
    mend="Make it a pipe with mode 384 (0600).",
)
def admin_on_network(config: Config) -> Iterator[Problem]:
    """Look for an admin interface that others reach."""
    for admin in config.reader.all(Admin):
        address = admin.address
        if address is None:
            continue
        if address.pipe is None:
            yield config.place(admin, "address"), "It has a network address."
        elif not _private(address.pipe):
            yield config.place(address, "pipe"), "Its socket is open to others."


def _private(pipe: Pipe) -> bool:
    # Without a mode it is whatever the umask makes it.
    return 0 < pipe.mode < _MODES and not (
        pipe.mode & _OTHERS_MAY or pipe.path.startswith("@")
    )


@rule(
    "admin-reached",
    why="Every further path is a further door to the admin interface.",
    mend="Lead only GET /stats/prometheus and GET /ready to it, by exact path, from a"
    " listener of their own.",
)
def admin_reached(config: Config) -> Iterator[Problem]:
    """Look for pages of the admin interface behind a listener."""
    for door in config.doors:
        for way in door.ways:
            match = way.route.match
            if config.admin_clusters & set(way.clusters):
                page = match and match.path in _PAGES and _get_only(match)
                if not page or door in config.gateways:
                    what = f"Route {way.route.name or 'without name'!r} leads to it."
                    yield config.place(way.route), what


def _get_only(match: RouteMatch) -> bool:
    return any(
        header.name == ":method"
        and not header.invert_match
        and header.string_match is not None
        and header.string_match.exact == "GET"
        for header in match.headers
    )


@rule(
    "raw-door",
    why="Bytes pass as they are, and nobody asks for a key.",
    mend="Use an HTTP connection manager with ext_authz; raw bytes only behind"
    " certificates of clients whose names are checked.",
)
def raw_door(config: Config) -> Iterator[Problem]:
    """Look for listeners that pass on bytes."""
    for listener in config.listeners:
        chains = [*listener.filter_chains, listener.default_filter_chain]
        for chain in filter(None, chains):
            for each in chain.filters:
                inner = config.reader.unpacked(each.typed_config)
                if not isinstance(inner, _KNOWN) and not (
                    _to_others(config, inner) and _named_clients(config, chain)
                ):
                    what = f"Listener {listener.name!r} has the filter {each.name!r}."
                    yield config.place(each), what
                elif each.config_discovery is not None:
                    what = f"Filter {each.name!r} is configured elsewhere."
                    yield config.place(each), what


def _to_others(config: Config, inner: Message | None) -> bool:
    """Whether bytes go to one cluster, and that is no model server of a gateway."""
    reached = {name for door in config.gateways for name in config.reached(door)}
    return (
        isinstance(inner, TcpProxy)
        and bool(inner.cluster)
        and inner.cluster not in reached
    )


def _named_clients(config: Config, chain: FilterChain) -> bool:
    socket = chain.transport_socket
    tls = config.reader.unpacked(socket.typed_config) if socket else None
    return (
        isinstance(tls, DownstreamTlsContext)
        and bool(tls.require_client_certificate)
        and checks_names(config, tls.common_tls_context)
    )


@rule(
    "secret-in-plain-text",
    why="Whoever reads the file, its repository or a ConfigMap has the secret.",
    mend="Put it into a file of its own (filename) or use SDS; make a new secret.",
)
def secret_in_plain_text(config: Config) -> Iterator[Problem]:
    """Look for keys, passwords and private keys. They are never shown."""
    lines = [  # comments and keys, too
        (line, Place(file, number))
        for file, text in config.texts.items()
        for number, line in enumerate(text.split("\n"), 1)
    ]
    scalars = [each for root in config.roots for each in config.reader.scalars(root)]
    for text, place in lines + scalars:
        if SECRET.search(text):
            yield place, "Here stands what looks like a secret."
    for kind, name in _SECRET_FIELDS:
        for owner in config.reader.all(kind):
            field = getattr(owner, name)
            for source in field if isinstance(field, list) else filter(None, [field]):
                if source.inline_string or source.inline_bytes:
                    what = f"{name} stands here in plain text."
                    yield config.place(owner, name), what


@rule(
    "runtime",
    why="It overrules what the files say; and without the keys of envoy.yaml a flood of"
    " requests that are reset, or memory, is not bounded.",
    mend="Have one static layer with the three keys of envoy.yaml, and no more.",
)
def runtime(config: Config) -> Iterator[Problem]:
    """Look for a runtime that changes what the files say."""
    for bootstrap in config.bootstraps:
        layers = bootstrap.layered_runtime.layers if bootstrap.layered_runtime else []
        missing = set(_RUNTIME)
        for layer in layers:
            names = ("admin_layer", "disk_layer", "rtds_layer")
            yield from config.filled(layer, *names)
            values = dict(_values(layer.static_layer)) if layer.static_layer else {}
            missing -= values.keys()
            for key, value in values.items():
                least, most = _RUNTIME.get(key, (1, 0))
                if not (isinstance(value, int | float) and least <= value <= most):
                    what = f"The key {key!r} overrules the files."
                    yield config.place(layer, "static_layer"), what
        for key in sorted(missing) if config.gateways else ():
            yield config.place(bootstrap, "layered_runtime"), f"{key!r} is not set."


def _values(layer: Struct, before: str = "") -> Iterator[tuple[str, object]]:
    """Return the keys of a runtime layer, which may be nested, with their values."""
    for name, value in layer.fields.items():
        if value.struct_value is not None and value.struct_value.fields:
            yield from _values(value.struct_value, f"{before}{name}.")
        elif value.bool_value is not None:
            yield before + name, value.bool_value
        else:
            yield before + name, value.number_value
