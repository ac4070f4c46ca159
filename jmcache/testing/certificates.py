"""Certificates for servers that exist for a test: good, expired, for another name."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_LOCAL = ("localhost", "127.0.0.1")


class Certificate(NamedTuple):
    """Two files in PEM: a certificate, and its secret key."""

    certificate: Path
    key: Path


class Certificates:
    """An authority of our own, and what it signs. Made by the openssl program in 0.1 s each.

    made = Certificates(tmp_path)
    with PrivateServer(tls=made.issue()) as server:
        CacheSettings.from_url(server.url, tls_ca_certs=str(made.authority))
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Make the authority in *directory*, which exists.

        Raises:
            RuntimeError: This machine has no openssl program, or it failed.
        """
        self._directory = Path(directory).resolve()
        self._issued = 0
        # Python 3.13 insists on the usage here, and on the key identifier below.
        root = ("-x509", "-days", "2", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._authority = self._make("authority", *root, subject="jmcache test CA")

    @property
    def authority(self) -> Path:
        """The file of the authority's certificate: who trusts it trusts what it signed."""
        return self._authority.certificate

    def issue(self, *hosts: str, expired: bool = False) -> Certificate:
        """Make a certificate.

        Args:
            hosts: Names or IPv4 addresses that it is for; none: localhost and 127.0.0.1.
            expired: It was valid until yesterday.
        """
        self._issued += 1
        name = f"issued-{self._issued}"
        made = self._make(name, subject="redis")
        extensions = self._directory / f"{name}.ext"
        names = ",".join(
            f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}"
            for host in hosts or _LOCAL
        )
        extensions.write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n")
        _openssl(
            "x509", "-req", "-in", made.certificate, "-out", made.certificate,
            "-CA", self._authority.certificate, "-CAkey", self._authority.key, "-CAcreateserial",
            "-days", "-1" if expired else "2", "-extfile", extensions,
        )  # fmt: skip
        return made

    def _make(self, name: str, *how: str, subject: str) -> Certificate:
        made = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", made.key, "-out", made.certificate, "-subj", f"/CN={subject}", *how,
        )  # fmt: skip
        return made


def _openssl(*words: str | Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise RuntimeError(
            "certificates need the openssl program. Run: sudo apt-get install openssl"
        )
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"openssl failed: {done.stderr[-500:]}")
