"""Whom a TLS connection trusts, and what it shows of itself."""

from __future__ import annotations

import ssl

from jmcache.errors import RedisMisconfiguredError


class Tls:
    """The context for TLS connections. Thread-safe, and the same in a forked child.

    Read from its files at the first connection, and again after a handshake failed: to read the
    system's own authorities takes 50 ms, and certificates are replaced while a service runs.
    """

    def __init__(
        self,
        *,
        ca_certs: str | None,
        certfile: str | None,
        keyfile: str | None,
        verify: bool,
        check_hostname: bool,
    ) -> None:
        """Remember the settings of the same names; touches no file."""
        self._ca_certs = ca_certs
        self._certfile = certfile
        self._keyfile = keyfile
        self._verify = verify
        self._check_hostname = check_hostname
        self._context: ssl.SSLContext | None = None  # benign race: two threads read the files

    def context(self) -> ssl.SSLContext:
        """Return the context.

        Raises:
            RedisMisconfiguredError: A file cannot be read; reason "tls".
            ssl.SSLError: It holds no certificate or key that works.
        """
        if self._context is None:
            try:
                self._context = self._read()
            except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
                raise RedisMisconfiguredError(
                    "tls_ca_certs, tls_certfile, tls_keyfile: a file cannot be read", reason="tls"
                ) from error
        return self._context

    def forget(self) -> None:
        """Read the files again for the next connection."""
        self._context = None

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_certs)
        context.check_hostname = self._verify and self._check_hostname
        context.verify_mode = ssl.CERT_REQUIRED if self._verify else ssl.CERT_NONE
        if self._certfile is not None:
            # With a password, even none, OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(self._certfile, self._keyfile, password="")
        return context
