"""Files over http and https for jobs that nobody trusts: private addresses are refused, and the checked one is used.

A name is resolved once and the connection goes to exactly that address, so a DNS server that answers differently the
second time gains nothing. A redirect is followed only on the same host. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from cyxwiz_tasks.errors import DataError, DataRefused

#: Hosts, separated by commas, that jobs may read from although their address is private; set by the node's owner.
PRIVATE_HOSTS_VARIABLE = "CYXWIZ_DATA_PRIVATE_HOSTS"

_TIMEOUT_SECONDS = 30
_MOST_REDIRECTS = 5
_BLOCK_BYTES = 2**20


def version_of(url: str) -> str:
    """What tells this content of the address from a later one: its ETag, date and length, as the server says."""
    with _opened(url) as response:
        return "|".join(response.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length"))


def download(url: str, path: Path) -> None:
    """Write the whole content to `path`. Raises DataRefused for a private address, DataError if it does not arrive."""
    with _opened(url) as response, path.open("wb") as handle:
        received = 0
        while block := response.read(_BLOCK_BYTES):
            received += handle.write(block)
    expected = response.headers.get("Content-Length")
    if expected is not None and received != int(expected):
        raise DataError(f"dataset: {url} broke off after {received} of {expected} bytes; submit the job again")


def public_address(host: str, port: int) -> str:
    """The address to connect to. Raises DataRefused if any address of the host is private, DataError if it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DataError(f"dataset: host {host!r} is not known here ({error}); see its spelling") from None
    addresses = [str(entry[4][0]) for entry in found]
    if host not in os.environ.get(PRIVATE_HOSTS_VARIABLE, "").split(","):
        for address in addresses:
            if not _is_public(address):
                raise DataRefused(
                    f"dataset: {host} is at {address}, a private address, which jobs may not read; "
                    f"the node's owner can allow it with {PRIVATE_HOSTS_VARIABLE}={host}"
                )
    return addresses[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour is not None or ip.teredo is not None:
            return False
        ip = ip.ipv4_mapped or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _PinnedConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.create_connection((public_address(self.host, self.port), self.port), self.timeout)


class _PinnedTlsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        plain = socket.create_connection((public_address(self.host, self.port), self.port), self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


@contextmanager
def _opened(url: str) -> Iterator[http.client.HTTPResponse]:
    for _ in range(_MOST_REDIRECTS):
        address = urlsplit(url)
        connection = _connection_to(address)
        try:
            path = f"{address.path or '/'}?{address.query}" if address.query else address.path or "/"
            # As a browser does it: letters beyond ASCII and blanks; what is quoted already stays as it is.
            quoted = quote(path, safe="/?%:@!$&'()*+,;=-._~[]")
            connection.request("GET", quoted, headers={"User-Agent": "cyxwiz-tasks"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                url = _same_host(url, response.headers.get("Location", ""))
                continue
            if response.status != http.client.OK:
                raise DataError(
                    f"dataset: {url} answers {response.status} {response.reason}; see that the address is right"
                )
            yield response
            return
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"dataset: {url} cannot be read: {error or type(error).__name__}") from error
        finally:
            connection.close()
    raise DataError(f"dataset: {url} redirects more than {_MOST_REDIRECTS} times; write the final address")


def _connection_to(address: SplitResult) -> http.client.HTTPConnection:
    try:
        port = address.port
    except ValueError:
        port = 0
    if not address.hostname or port == 0 or address.username is not None:
        raise DataError(f"dataset: {address.geturl()!r} must have the form https://host/path, without a password")
    kind = _PinnedTlsConnection if address.scheme == "https" else _PinnedConnection
    return kind(address.hostname, port, timeout=_TIMEOUT_SECONDS)


def _same_host(url: str, location: str) -> str:
    target = urljoin(url, location)
    before, after = urlsplit(url), urlsplit(target)
    if after.hostname != before.hostname or after.scheme not in ("http", "https") or after.scheme < before.scheme:
        raise DataRefused(
            f"dataset: {url} redirects to {target}; only the same host is followed, so write that address"
        )
    return target
