"""Certificates for TLS on the loopback: an authority of ours, and what it signed, good and bad."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


class Certificates:
    """Files of an authority, and of certificates that it signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        root = ("-x509", "-days", "2", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self.authority = self._make("authority", *root, subject="/CN=our CA")
        self.stranger = self._make("stranger", *root, subject="/CN=other CA")
        self.good = self._sign("good", "IP:127.0.0.1")
        self.other_host = self._sign("other", "DNS:elsewhere.example")
        self.expired = self._sign("expired", "IP:127.0.0.1", days="-1")
        self.client = self._sign("client", "DNS:client.example")

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=20)

    def _make(self, name: str, *words: str, subject: str) -> str:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        files = ("-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.pem"))
        self._run("req", *key, *files, "-subj", subject, *words)
        return self.path(f"{name}.pem")

    def _sign(self, name: str, alternative: str, days: str = "2") -> str:
        request = self._make(name, subject="/CN=redis")
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        issuer = ("-CA", self.authority, "-CAkey", self.path("authority.key"), "-CAcreateserial")
        shape = ("-days", days, "-extfile", str(extensions))
        self._run("x509", "-req", "-in", request, "-out", request, *issuer, *shape)
        return request

    def context(self, certificate: str, client_authority: str | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.replace(".pem", ".key"))
        if client_authority:
            context.load_verify_locations(client_authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
