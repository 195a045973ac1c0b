"""Where a lakeFS server is and with which keys, found as lakeFS's own tools find it.

Keys come from `LAKECTL_CREDENTIALS_ACCESS_KEY_ID` and `LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY`, each else from
`~/.lakectl.yaml` (or `$LAKECTL_CONFIG_FILE`). Both may name an endpoint (`LAKECTL_SERVER_ENDPOINT_URL`,
`server.endpoint_url`); keys that belong to another endpoint are never sent to this one. Last comes the server that
`emlake server start` runs under `$EMLAKE_HOME`.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from lake.errors import BadInput, InvalidName, NotAuthorized
from lake.home import home, write_private
from lake.location import S3Access

_LOCATION = re.compile(r"lakefs://(?P<host>\[[0-9a-fA-F:]+\]|[^/:\s]+):(?P<port>[0-9]{1,5})/(?P<name>[^/\s]+)/?")
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9-]{2,62}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
REGION = "us-east-1"


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """A repository on a server, with the keys to it; `source` says where the keys were found."""

    host: str
    port: int
    name: str
    scheme: str
    access_key_id: str
    secret_access_key: str
    source: str

    def __repr__(self) -> str:
        return f"Address({self.location!r}, {self.source!r})"

    @property
    def location(self) -> str:
        """The form that `lake.open` takes."""
        return f"lakefs://{self.netloc}/{self.name}"

    @property
    def on_loopback(self) -> bool:
        """Whether the server is on this machine, or is reached through something that is."""
        return self.host.lower() in _LOOPBACK

    @property
    def netloc(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """`http://host:port`: the REST interface and the S3 gateway share it."""
        return f"{self.scheme}://{self.netloc}"

    def s3_access(self) -> S3Access:
        """Give access to the S3 gateway, and write the key files that TensorStore wants (mode 0600)."""
        digest = hashlib.sha256("\n".join([self.origin, self.access_key_id, self.secret_access_key]).encode())
        profile = f"emlake-{digest.hexdigest()[:16]}"
        folder = home() / "credentials"
        keys, config = folder / f"{profile}.credentials", folder / f"{profile}.config"
        lines = [f"[{profile}]", f"aws_access_key_id = {self.access_key_id}"]
        _keep(keys, "\n".join([*lines, f"aws_secret_access_key = {self.secret_access_key}", ""]))
        _keep(config, f"[profile {profile}]\nregion = {REGION}\n")
        return S3Access(
            endpoint=self.origin,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            profile=profile,
            credentials_file=str(keys),
            config_file=str(config),
            region=REGION,
        )


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys from one place; an empty endpoint goes with any server."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    source: str


def resolve(location: str) -> Address:
    """Read `lakefs://host:port/name` and find the keys to it.

    Raises
    ------
    BadInput
        The location has another form, or would send keys over plain http to another machine without being told to.
    InvalidName
        The repository name breaks lakeFS's rules.
    NotAuthorized
        There are no keys for this server.
    """
    match = _LOCATION.fullmatch(location)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise BadInput(
            f"{location!r} does not say which repository on which server", fix="write lakefs://HOST:PORT/REPOSITORY"
        )
    host, port, name = match["host"].strip("[]"), int(match["port"]), match["name"]
    if not _REPOSITORY.fullmatch(name):
        raise InvalidName(
            f"repository name {name!r} is not valid on a server",
            fix="use 3 to 63 of a-z, 0-9 and '-', starting with a letter or a digit",
        )
    known = [keys for keys in (_lakectl(), _own_server()) if keys is not None]
    for keys in known:
        if keys.access_key_id and keys.secret_access_key and _same_server(keys.endpoint, host, port):
            scheme = _scheme(keys.endpoint, host, port)
            return Address(host, port, name, scheme, keys.access_key_id, keys.secret_access_key, keys.source)
    others = ", ".join(f"{keys.source} is for {keys.endpoint}" for keys in known if keys.endpoint)
    raise NotAuthorized(
        f"there are no credentials for {host}:{port}" + (f" ({others})" if others else ""),
        fix="set LAKECTL_SERVER_ENDPOINT_URL, LAKECTL_CREDENTIALS_ACCESS_KEY_ID and "
        "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY, write ~/.lakectl.yaml, or run `emlake server start`",
    )


def _lakectl() -> _Keys | None:
    """Read what lakectl reads: the environment, each missing value from the file."""
    path = Path(os.environ.get("LAKECTL_CONFIG_FILE") or Path.home() / ".lakectl.yaml")
    server, credentials = _config_file(path)

    def value(variable: str, section: dict[str, object], key: str) -> str:
        return os.environ.get(variable) or str(section.get(key) or "")

    keys = _Keys(
        value("LAKECTL_SERVER_ENDPOINT_URL", server, "endpoint_url"),
        value("LAKECTL_CREDENTIALS_ACCESS_KEY_ID", credentials, "access_key_id"),
        value("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", credentials, "secret_access_key"),
        "the LAKECTL_ environment" if os.environ.get("LAKECTL_CREDENTIALS_ACCESS_KEY_ID") else str(path),
    )
    return keys if keys.access_key_id or keys.endpoint else None


def _config_file(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} cannot be read: {error}", fix="correct the file or remove it") from error
    sections = content if isinstance(content, dict) else {}
    server, credentials = sections.get("server"), sections.get("credentials")
    return server if isinstance(server, dict) else {}, credentials if isinstance(credentials, dict) else {}


def _own_server() -> _Keys | None:
    from lake.server import status

    state = status()
    if state is None:
        return None
    return _Keys(state.endpoint, state.access_key_id, state.secret_access_key, "the server under $EMLAKE_HOME")


def _endpoint_parts(endpoint: str) -> tuple[str, str, int | None]:
    url = urlsplit(endpoint if "://" in endpoint else "//" + endpoint)
    return url.scheme, url.hostname or "", url.port or {"http": 80, "https": 443}.get(url.scheme)


def _same_server(endpoint: str, host: str, port: int) -> bool:
    if not endpoint:
        return True
    try:
        _, other, other_port = _endpoint_parts(endpoint)
    except ValueError:
        return False
    return (other == host.lower() or {other, host.lower()} <= _LOOPBACK) and other_port == port


def _scheme(endpoint: str, host: str, port: int) -> str:
    scheme = _endpoint_parts(endpoint)[0]
    if scheme in ("http", "https"):
        return scheme
    if host.lower() in _LOOPBACK:
        return "http"
    raise BadInput(
        f"it is not said whether {host}:{port} speaks http or https",
        fix=f"set LAKECTL_SERVER_ENDPOINT_URL=https://{host}:{port} (or http:// if the network is trusted)",
    )


def _keep(path: Path, text: str) -> None:
    # Written once per set of keys; a rewrite while another process reads would be harmless but is not needed.
    try:
        if path.read_text(encoding="utf-8") == text and path.stat().st_mode & 0o077 == 0:
            return
    except OSError:
        pass
    write_private(path, text)
