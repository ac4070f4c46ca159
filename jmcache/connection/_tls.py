"""TLS: whom a connection trusts, what it shows of itself, and the bytes it makes of ours."""

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
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # whatever the system's OpenSSL is set to
        context.check_hostname = self._verify and self._check_hostname
        context.verify_mode = ssl.CERT_REQUIRED if self._verify else ssl.CERT_NONE
        if self._certfile is not None:
            # With a password, even none, OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(self._certfile, self._keyfile, password="")
        return context


class TlsLayer:
    """TLS between our bytes and those on the wire. Does no input or output of its own.

    Not the standard library's SSLSocket: that one takes the descriptor over from the socket it is
    made of, in Python code, and an exception from a signal handler there leaves the descriptor
    open in a traceback that somebody keeps.
    """

    __slots__ = ("_incoming", "_object", "_outgoing")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        """Begin with a server that *context* trusts to be *host*."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    @property
    def unread(self) -> bool:
        """True when more came from the wire than was read."""
        return bool(self._incoming.pending or self._object.pending())

    def shake_hands(self) -> bool:
        """Go on with the handshake; True when it is done. False: more is needed from the wire.

        Either way, and also when it raises ssl.SSLError, there may be something to send.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def write(self, data: bytes | memoryview) -> bool:
        """Take all of *data* to be sent; False: not before more came from the wire."""
        try:
            self._object.write(data)
        except ssl.SSLWantReadError:
            return False
        return True

    def to_send(self) -> bytes:
        """Return what is to go out, once."""
        return self._outgoing.read()

    def received(self, data: bytes) -> None:
        """Take *data* from the wire; b"" is its end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def read(self, size: int) -> bytes | None:
        """Return at most *size* bytes; b"" at the end, None when more is needed from the wire."""
        try:
            return self._object.read(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLEOFError:
            return b""
