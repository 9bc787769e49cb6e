"""TLS settings made into an `ssl.SSLContext`: the one place, for the data and the control plane."""

from __future__ import annotations

import os
import ssl
from typing import Never

from engine.errors import LinkError, UsageError
from engine.model.endpoint import Tls

# Settings whose files were of use.
_used: set[Tls] = set()


def ssl_context(tls: Tls) -> ssl.SSLContext:
    """A client's context, as `_context` has it, with the files as they are now. Raises `UsageError`
    where they are of no use, and `LinkError` where they were before: they may be renewed just now,
    one behind the other."""
    try:
        context = _context(tls)
    except UsageError as error:
        if tls not in _used:
            raise
        raise LinkError(
            f"{error.message}; it was of use before, and is read again with each try",
            remedy=error.remedy,
        ) from None
    _used.add(tls)
    return context


def _context(tls: Tls) -> ssl.SSLContext:
    """A client's context: certificate and host name verified unless `tls.verify` is off.

    `ca_file` replaces the system's authorities; `cert_file` (with `key_file`, or the key in the
    same file) is our client certificate. `server_name` is not used here: hand it to the handshake
    as `server_hostname`. Raises `UsageError`, naming the file and the way out.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.verify:
        _trust(context, tls.ca_file)
    else:
        # In this order: CERT_NONE is refused as long as host names are checked.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_file is not None:
        _identify(context, tls.cert_file, tls.key_file)
    elif tls.key_file is not None:
        raise UsageError(
            "a client key was given without a client certificate",
            remedy="Name the certificate too (cert_file), or leave out key_file.",
        )
    return context


def _trust(context: ssl.SSLContext, ca_file: str | None) -> None:
    if ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return
    _check_readable(ca_file, "CA file", "ca_file")
    try:
        context.load_verify_locations(cafile=ca_file)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"the CA file {ca_file} holds no certificate that OpenSSL can read ({_reason(error)})",
            remedy="Expected one or more certificates in PEM form (-----BEGIN CERTIFICATE-----).",
        ) from None


def _identify(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    _check_readable(cert_file, "client certificate", "cert_file")
    if key_file is not None:
        _check_readable(key_file, "client key", "key_file")
    files = cert_file if key_file is None else f"{cert_file} and {key_file}"
    try:
        # Without this callback OpenSSL would ask for an encrypted key's passphrase on the terminal.
        context.load_cert_chain(cert_file, key_file, password=_refuse_passphrase)
    except UsageError:
        raise UsageError(
            f"the client key in {key_file or cert_file} is encrypted",
            remedy="Write it without a passphrase (openssl pkey), readable only by you.",
        ) from None
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"the client certificate and key in {files} cannot be used ({_reason(error)})",
            remedy="Expected a PEM certificate with its chain, and the private key that belongs to"
            " it, in key_file or in the same file.",
        ) from None


def _check_readable(path: str, what: str, option: str) -> None:
    # OpenSSL's own errors do not name the file.
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UsageError(
            f"the {what} {path} cannot be read ({os.strerror(error.errno or 0)})",
            remedy=f"Check {option} and the file's permissions.",
        ) from None


def _refuse_passphrase() -> Never:
    raise UsageError("the client key is encrypted")


def _reason(error: OSError) -> str:
    # e.g. KEY_VALUES_MISMATCH, NO_CERTIFICATE_OR_CRL_FOUND, NO_START_LINE
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else "not a PEM file"
