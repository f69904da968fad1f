"""The one rule for the broker's address: what redis-py, kombu and Celery each take for the same Redis.

Each of them alone knows more, or asks for more: sockets of Unix, names for the checks of TLS. With an address that only
one of them understands, a job would be sent, and its result never be read.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from cyxwiz_tasks.errors import ServerUnavailable

_CHECKS = ("required", "optional", "none")


def usable(url: str) -> str:
    """The address as all of them understand it. Raises ServerUnavailable, in words without the password."""
    try:
        return _usable(url)
    except ValueError as error:
        raise ServerUnavailable(f"CYXWIZ_BROKER_URL is no URL of a Redis: {error}") from None


def _usable(url: str) -> str:
    parts = urlsplit(url)
    # redis:// alone is this machine to all of them; without its slashes it is no address.
    if parts.scheme not in ("redis", "rediss") or not (parts.netloc or url.startswith("redis://")):
        kind = f"{parts.scheme}://..." if parts.scheme else "that"
        raise ValueError(f"{kind} cannot be used: write redis://host:6379/0, or rediss://host:6379/0 for TLS")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if odd := next((name for name in query if parts.scheme == "redis" or not name.startswith("ssl_")), None):
        raise ValueError(
            f"its option {odd} is not known to all that read it: leave it out, only ssl_... of a rediss:// may stand "
            "there"
        )
    if parts.scheme == "redis":
        return url
    check = query.get("ssl_cert_reqs", _CHECKS[0]).lower().removeprefix("cert_")
    if check not in _CHECKS:
        raise ValueError(f"ssl_cert_reqs={query['ssl_cert_reqs']} is unknown: write one of {', '.join(_CHECKS)}")
    if query.get("ssl_cert_reqs") == check:
        return url
    return urlunsplit(parts._replace(query=urlencode(query | {"ssl_cert_reqs": check})))
