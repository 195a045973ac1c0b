"""The road to a lakeFS server: one pool of connections, retries where they are safe, errors translated.

A server that is slow is waited for, one that has gone is reported in under five seconds (`watched`).

Short calls go through `lakefs_sdk`. Object bytes and the long pages (list, diff, log) use the same pool without its
models, which cost 2 to 10 times the transfer of a page of 1,000.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from lakefs.client import Client

from lake import reach
from lake.engines.lakefs.address import Address
from lake.engines.lakefs.failures import (
    FOREIGN,
    from_exception,
    from_status,
    is_lost,
    may_repeat,
    text_of,
    unsent,
)
from lake.engines.lakefs.lane import Lane
from lake.engines.lakefs.watched import watched_pool
from lake.errors import LakeError, StorageError

T = TypeVar("T")
#: A list of pairs may name one parameter several times.
Query = Mapping[str, object] | Sequence[tuple[str, object]]
PAGE = 1000
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Refused connections fail at once; a host that swallows packets must still be reported in under five seconds.
CONNECT_S = 3.0
READ_S = 60.0
# By a server that lives all the while. Giving up on a write leaves its outcome unknown, so wait.
WRITE_S = 600.0
_READS = ("get_", "list_", "stat_", "head_")  # how the generated client names what changes nothing
_PAUSES_S = (0.1, 0.3, 0.9)


class Wire:
    """A connection to one repository."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = address.name
        self.client = Client(host=address.origin, username=address.access_key_id, password=address.secret_access_key)
        self.sdk = self.client.sdk_client
        api = self.sdk.objects_api.api_client
        configuration = api.configuration
        self._pool = watched_pool(secure=address.scheme == "https", ca_certs=configuration.ssl_ca_cert, connections=32)
        api.rest_client.pool_manager = self._pool
        self._base = f"{configuration.host}/repositories/{quote(self.name, safe='')}"
        self._authorization = configuration.get_basic_auth_token()
        self._lane = Lane(address.origin, CONNECT_S) if address.scheme == "http" else None

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()
        if self._lane is not None:
            self._lane.close()

    def call(
        self, function: Callable[..., Any], *arguments: Any, doing: str, safe: bool = False, **options: Any
    ) -> Any:
        """Call a function of the generated client; `safe` says that doing it twice does no harm."""
        timeout = (CONNECT_S, READ_S if safe else WRITE_S)
        try:
            return self._attempt(
                lambda: function(*arguments, _request_timeout=timeout, **options),
                doing=doing,
                safe=safe,
                changes=not function.__name__.startswith(_READS),
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            # How the generated client stumbles over an answer that does not fit its models.
            raise self._strange(doing) from error

    def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        doing: str,
        body: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        safe: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request below the repository; `body` makes the body anew for each attempt."""
        url = self._base + path + ("?" + urlencode(query) if query else "")
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S if method == "GET" else WRITE_S)

        def send() -> urllib3.BaseHTTPResponse:
            content: Any = body() if body is not None else None
            try:
                answer = self._pool.request(
                    method,
                    url,
                    body=content,
                    headers={"Authorization": self._authorization, **(headers or {})},
                    timeout=timeout,
                    redirect=False,
                )
            finally:
                if hasattr(content, "close"):
                    content.close()
            if not 200 <= answer.status < 300:
                raise from_status(answer.status, text_of(answer.data), doing)
            return answer

        return self._attempt(send, doing=doing, safe=safe, changes=method != "GET")

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        data: bytes | Path = b"",
        size: int = 0,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        doing: str,
        once: bool = False,
    ) -> bytes:
        """Send bytes or a file below the repository by the fastest road, and give the body of the answer.

        Done twice it must do no harm; with `once` it is sent again only if it surely did not arrive.
        """
        target = path + "?" + urlencode(query)
        lane = self._lane
        if lane is None:
            sized = {**headers, "Content-Length": str(size)}
            make = (lambda: data.open("rb")) if isinstance(data, Path) else (lambda: BytesIO(data))
            return self.request(method, target, doing=doing, body=make, headers=sized, safe=not once).data
        below = urlsplit(self._base).path + target
        given = {"Authorization": self._authorization, **headers}

        def send() -> bytes:
            answer = lane.send(method, below, given, data, size, once=once)
            if not 200 <= answer.status < 300:
                raise from_status(answer.status, text_of(answer.data), doing, size)
            return answer.data

        return self._attempt(send, doing=doing, safe=not once, changes=method != "GET")

    def json(
        self, path: str, query: Query | None = None, *, fields: tuple[str, ...] = (), doing: str
    ) -> dict[str, Any]:
        """GET an object that has these fields; else what answers is no lakeFS server this client knows."""
        return self.read(self.request("GET", path, query, doing=doing).data, fields=fields, doing=doing)

    def read(self, answer: bytes, *, fields: tuple[str, ...] = (), doing: str) -> dict[str, Any]:
        """Read an answer that must be a JSON object with these fields."""
        try:
            content = json.loads(answer)
        except ValueError as error:
            raise self._strange(doing) from error
        if not isinstance(content, dict) or any(field not in content for field in fields):
            raise self._strange(doing)
        return content

    def _strange(self, doing: str) -> StorageError:
        # lakeFS itself answers a path it does not know with 200 and an HTML page.
        return StorageError(
            f"{doing}: {self.address.origin} does not answer like a lakeFS server", fix="correct the address"
        )

    def pages(
        self,
        path: str,
        query: Query,
        *,
        fields: tuple[str, ...],
        doing: str,
        after: str = "",
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the results of a listing, `PAGE` at a time; each is an object with these fields."""
        left = limit
        entries = list(query.items() if isinstance(query, Mapping) else query)
        while left is None or left > 0:
            amount = PAGE if left is None else min(PAGE, left)
            arguments = [*entries, ("after", after), ("amount", amount)]
            page = self.json(path, arguments, fields=("results", "pagination"), doing=doing)
            try:
                if any(field not in entry for entry in page["results"] for field in fields):
                    raise self._strange(doing)
                after, more = page["pagination"]["next_offset"], page["pagination"]["has_more"]
            except (TypeError, KeyError) as error:
                raise self._strange(doing) from error
            yield from page["results"]
            if left is not None:
                left -= len(page["results"])
            if not more:
                return

    def _attempt(self, send: Callable[[], T], *, doing: str, safe: bool, changes: bool) -> T:
        """Send, and send again where that can do no harm: nothing had left, or repeating changes nothing."""
        origin = self.address.origin
        if reach.lately_lost(origin) and (gone := reach.silent(origin)) is not None:
            raise unsent(gone, doing, origin) from gone
        for pause in (*_PAUSES_S, None):
            try:
                return send()
            except LakeError as error:
                failure, again = error, may_repeat(error, safe=safe)
            except FOREIGN as problem:
                failure = from_exception(problem, doing, origin, changes=changes)
                failure.__cause__ = problem
                again = may_repeat(failure, safe=safe)
            if pause is None or not again:
                if is_lost(failure):
                    reach.lost(origin)
                raise failure
            time.sleep(pause)
        raise AssertionError("unreachable: the last pause is None")


def segment(name: str) -> str:
    """Quote a ref or branch for use as one path segment (`main~1`, `a/b`)."""
    return quote(name, safe="")
