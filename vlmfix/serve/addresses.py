"""Pictures at addresses: data URLs, and hosts and folders that the operator allows by name."""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlmfix.serve.errors import RequestError

PATIENCE = 10.0
"""Seconds in which a picture must have come from its host."""
_DATA = re.compile(r"data:image/[\w.+-]+(;[\w.-]+=[\w.-]+)*;base64,", re.IGNORECASE | re.ASCII)
_PORTS = {"http": 80, "https": 443}
_CHUNK = 2**16
_TRANSLATED = [ipaddress.ip_network(each) for each in ("64:ff9b::/96", "64:ff9b:1::/48")]


@dataclass(frozen=True)
class Allowed:
    """Where pictures may come from, beside data URLs.

    Args:
        hosts: names such as "images.example.org", with a port where it is not that of the scheme; never
            those with private addresses.
        folders: of which, and of whose folders, `file` addresses are read.
    """

    hosts: frozenset[str] = frozenset()
    folders: tuple[Path, ...] = ()


def read_address(url: str, allowed: Allowed, most: int) -> bytes:
    """The file at an address.

    Args:
        url: see `Allowed`.
        allowed: where from.
        most: bytes.

    Raises:
        RequestError: the address is not allowed or cannot be read (400), or the file is too large (413).
    """
    if url[:5].lower() == "data:":
        return _decoded(url)
    if any(not " " < character < "\x7f" for character in url):
        raise _refused("the address of a picture holds what is no printable ASCII; escape it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"the address of a picture cannot be read ({error})") from error
    if parts.scheme in _PORTS and parts.hostname:
        wanted = _PORTS[parts.scheme] if port is None else port
        name = parts.hostname if wanted == _PORTS[parts.scheme] else f"{parts.hostname}:{wanted}"
        if name not in allowed.hosts:
            raise _refused(
                f"pictures of {name[:100]!r} are not fetched; send the picture as a data URL, or let the "
                "operator allow the host (--allow-host)"
            )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            return _fetched(parts.scheme, parts.hostname, wanted, target, most)
        except (OSError, http.client.HTTPException) as error:
            raise _refused(f"the picture cannot be fetched from {name!r} ({type(error).__name__})") from error
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return _read(unquote(parts.path), allowed.folders, most)
    raise _refused(
        f"the address of a picture begins with {url[:20]!r}; send the picture as a data URL, "
        "data:image/png;base64,..."
    )


def _refused(message: str) -> RequestError:
    return RequestError(400, message, code="invalid_image_url", param="messages")


def _too_large(most: int) -> RequestError:
    return RequestError(
        413, f"a picture is a file of more than {most} bytes; make it smaller", code="image_too_large"
    )


def _decoded(url: str) -> bytes:
    head = _DATA.match(url)
    if head is None:
        raise _refused("a data URL of a picture must begin with data:image/TYPE;base64,")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(f"the data URL of a picture is no base64 ({error})") from error


def _read(path: str, folders: Sequence[Path], most: int) -> bytes:
    """A file inside one of the folders, links followed before it is judged."""
    refused = _refused(
        "this file is not in a folder that the operator allows (--allow-folder), or is not there; send the "
        "picture as a data URL"
    )
    try:
        file = Path(path).resolve(strict=True)
        if not file.is_file() or not any(file.is_relative_to(folder.resolve()) for folder in folders):
            raise refused
        if file.stat().st_size > most:
            raise _too_large(most)
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise refused from error


def _fetched(scheme: str, host: str, port: int, target: str, most: int) -> bytes:
    """The body of a GET request to an address that was looked up, and judged, once."""
    until = time.monotonic() + PATIENCE
    connection = _Pinned(scheme, host, port, public_address(host, port))
    try:
        connection.request("GET", target, headers={"User-Agent": "vlmfix", "Accept": "image/*"})
        response = connection.getresponse()
        if response.status != 200:
            raise _refused(f"the host of the picture answers {response.status}; redirects are not followed")
        found = bytearray()
        while chunk := response.read1(_CHUNK):
            found += chunk
            if len(found) > most:
                raise _too_large(most)
            if time.monotonic() > until:
                raise TimeoutError
        return bytes(found)
    finally:
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to one address of a host, whatever its name stands for a moment later."""

    def __init__(self, scheme: str, host: str, port: int, address: str) -> None:
        super().__init__(host, port, timeout=PATIENCE / 2)
        self.default_port = _PORTS[scheme]
        self._address = address
        self._context = ssl.create_default_context() if scheme == "https" else None

    def connect(self) -> None:
        """Connect to the address, and prove that it is the host where the scheme can."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)


def public_address(host: str, port: int) -> str:
    """The first address of a host, all of which must be public.

    Raises:
        RequestError: one is not, such as that of this machine or its network.
        OSError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("no host name") from error
    addresses = [str(each[4][0]) for each in found]
    if not addresses:
        raise OSError("no address")
    for each in addresses:
        if not _is_public(ipaddress.ip_address(each.partition("%")[0])):
            raise _refused(f"{host[:100]!r} has a private address, from which no pictures are fetched")
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped
        or address.sixtofour
        or address.teredo
        or any(address in net for net in _TRANSLATED)
    ):
        return False  # each holds an IPv4 address, which may be private
    return address.is_global and not address.is_multicast and not address.is_reserved
