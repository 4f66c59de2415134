"""Whether the other end of a TLS connection is known by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContextTrustChainVerification as TrustChain,
)

if TYPE_CHECKING:
    from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
        CertificateValidationContext,
        CommonTlsContext,
    )

    from authz.envoy_check.config import Config


def checks_names(config: Config, tls: CommonTlsContext | None) -> bool:
    """Whether a certificate must be of a known authority and bear a known name."""
    if tls is None:
        return False
    found: list[CertificateValidationContext | None] = [tls.validation_context]
    named = [tls.validation_context_sds_secret_config]
    if both := tls.combined_validation_context:
        found.append(both.default_validation_context)
        named.append(both.validation_context_sds_secret_config)
    secrets = [config.secrets.get(each.name) for each in named if each]
    found += [secret.validation_context for secret in secrets if secret]
    contexts = [each for each in found if each]
    # The authority may come by SDS from a file that is not given: it is no secret,
    # but it need not lie beside the configuration. The names must be seen.
    known = any(each.trusted_ca for each in contexts) or any(named)
    return (
        known
        and any(each.match_typed_subject_alt_names for each in contexts)
        and not any(
            each.trust_chain_verification == TrustChain.ACCEPT_UNTRUSTED
            for each in contexts
        )
    )
