"""Certificates: whom the gateway trusts of its engines, and by what its clients know it."""

from __future__ import annotations

import ssl

from sooner.core import ConfigError


def trusting(ca_file: str) -> ssl.SSLContext:
    """Return how engines' certificates are checked: by the system's authorities, or by those in a file."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigError(f"ca_file {ca_file!r}: {error}; allowed: a file of certificates in PEM") from error


def served_as(cert: str, key: str) -> ssl.SSLContext | None:
    """Return how clients are served behind a certificate, None where no file of one is named."""
    if not cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key or None)
    except OSError as error:
        raise ConfigError(f"tls_cert {cert!r}, tls_key {key!r}: {error}; allowed: PEM files") from error
    return context
