"""Where a private server listens, and how to get there."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from urllib.parse import quote

from jmcache.testing.certificates import Certificate, Certificates
from jmcache.testing.resp import Link

_ANSWER_WITHIN = 5.0  # seconds for one admin command
_LONGEST_SOCKET_PATH = 103  # bytes: macOS's limit; Linux takes 107


class Endpoint:
    """A Unix socket in the server's folder, or a port of 127.0.0.1, encrypted or not."""

    def __init__(self, *, on_port: bool, tls: bool | Certificate) -> None:
        """Choose; nothing is taken yet."""
        self.on_port = on_port or bool(tls)
        self.known_port: int | None = None
        self._tls = tls
        self._certificates: Certificates | None = None
        self._certificate = tls if isinstance(tls, Certificate) else None

    @property
    def port(self) -> int:
        """See PrivateServer."""
        if self.known_port is None:
            raise RuntimeError("no port: it listens on a Unix socket, or was never started")
        return self.known_port

    def socket_path(self, folder: Path) -> Path:
        """See PrivateServer."""
        if self.on_port:
            raise RuntimeError("no socket path: it listens on a port")
        return folder / "redis.sock"

    def draw_port(self) -> None:
        """Take a port that is free at the moment, if it is to be one."""
        if self.on_port:
            self.known_port = free_port()

    def options(self, folder: Path) -> list[str]:
        """What tells the server to listen there."""
        if not self.on_port:
            path = str(self.socket_path(folder))
            if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
                raise ValueError(f"directory: too long for a Unix socket in it: {folder}")
            return ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
        bind = ["--bind", "127.0.0.1"]
        if not self._tls:
            return [*bind, "--port", str(self.port)]
        certificate = self._certificate
        if certificate is None:
            self._certificates = Certificates(folder)
            certificate = self._certificate = self._certificates.issue()
        return [
            *bind, "--port", "0", "--tls-port", str(self.port),
            "--tls-cert-file", str(certificate.certificate),
            "--tls-key-file", str(certificate.key),
            "--tls-ca-cert-file", str(certificate.certificate), "--tls-auth-clients", "no",
        ]  # fmt: skip

    def url(self, folder: Path, user: str, password: str | None) -> str:
        """The address, with *user* if there is a password."""
        at = "" if password is None else f"{quote(user, safe='')}:{quote(password, safe='')}@"
        if not self.on_port:
            return f"unix://{at}{quote(str(self.socket_path(folder)))}"
        scheme, trusted = "rediss" if self._tls else "redis", ""
        if self._certificates is not None:
            trusted = f"?tls_ca_certs={quote(str(self._certificates.authority))}"
        return f"{scheme}://{at}127.0.0.1:{self.port}/0{trusted}"

    def link(self, folder: Path) -> Link:
        """Open a connection.

        Raises:
            OSError: Nobody is there.
        """
        address = ("127.0.0.1", self.port) if self.on_port else str(self.socket_path(folder))
        return Link(address, _ANSWER_WITHIN, _unchecked() if self._tls else None)

    def forget_certificates(self) -> None:
        """They were in the folder that is gone."""
        if self._certificates is not None:
            self._certificates = self._certificate = None


def _unchecked() -> ssl.SSLContext:
    # For the owner, who knows the process: any certificate will do, also one made to be wrong.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free at the moment, and not 6379."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port != 6379:
            return port
