"""The one TLS context of the process: parsing the CA bundle takes some 100 ms, so it is done once."""

from __future__ import annotations

import functools
import os
import ssl
import threading

import certifi

__all__ = ["ssl_context"]

_building = threading.Lock()


def ssl_context() -> ssl.SSLContext:
    """The one context, with the certificates that httpx would trust; the first call builds it.

    `SSL_CERT_FILE`, else `SSL_CERT_DIR`, else certifi's bundle says whom to trust.
    """
    with _building:
        return _build()


@functools.cache
def _build() -> ssl.SSLContext:
    if file := os.environ.get("SSL_CERT_FILE"):
        context = ssl.create_default_context(cafile=file)
    elif folder := os.environ.get("SSL_CERT_DIR"):
        context = ssl.create_default_context(capath=folder)
    else:
        context = ssl.create_default_context(cafile=certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
