"""A place that native libraries open themselves, so that no bytes of a volume pass through our Python."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lake.errors import BadInput


@dataclass(frozen=True, slots=True, repr=False)
class S3Access:
    """How to reach an S3-compatible gateway (path style, signature version 4).

    `credentials_file` and `config_file` are absolute paths of mode-0600 files in AWS format that hold the same keys
    under `profile`: TensorStore takes keys from files or from the environment, never from its specification.
    """

    endpoint: str
    access_key_id: str
    secret_access_key: str
    profile: str
    credentials_file: str
    config_file: str
    region: str = "us-east-1"

    def __repr__(self) -> str:
        # The secret must not reach a log, a traceback or a run record.
        return f"S3Access(endpoint={self.endpoint!r}, access_key_id=***)"


@dataclass(frozen=True, slots=True)
class Location:
    """A folder (embedded engine), or `s3://repository/ref/prefix/` with credentials (server).

    Picklable, so that worker processes open it too. A read-only location is pinned to a commit.

    Parameters
    ----------
    root : str
        Absolute folder path, or `bucket/ref/prefix`; no trailing slash.
    s3 : S3Access or None
        None for a folder.
    writable : bool
        Whether what is written here belongs to a branch.
    """

    root: str
    s3: S3Access | None = None
    writable: bool = False

    @property
    def path(self) -> Path:
        """The folder; `BadInput` if this is not one."""
        if self.s3 is not None:
            raise BadInput(f"{self.uri} is not a folder", fix="use kvstore(), uri and storage_options")
        return Path(self.root)

    @property
    def uri(self) -> str:
        """What delta-rs, polars and DuckDB take: a folder path or `s3://...`."""
        return self.root if self.s3 is None else f"s3://{self.root}"

    @property
    def storage_options(self) -> dict[str, str]:
        """Options for delta-rs; empty for a folder."""
        if self.s3 is None:
            return {}
        # Never AWS_S3_ALLOW_UNSAFE_RENAME: it switches delta-rs's atomic commit off.
        return {
            "AWS_ENDPOINT_URL": self.s3.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.s3.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.s3.secret_access_key,
            "AWS_REGION": self.s3.region,
            # A server that dies under a request: delta-rs would try for three minutes. It looks at the clock before a
            # pause, which may be as long again.
            "connect_timeout": "2 seconds",
            "retry_timeout": "2s",
        }

    @property
    def scan_options(self) -> dict[str, Any]:
        """Options for polars; empty for a folder."""
        if self.s3 is None:
            return {}
        # It does not take delta-rs's for repeating: its own are 8 times in half a minute, and all that once more.
        return {**self.storage_options, "max_retries": 1, "retry_timeout_ms": 1000, "retry_max_backoff_ms": 300}

    def kvstore(self) -> dict[str, object]:
        """Give the TensorStore key-value store specification."""
        if self.s3 is None:
            return {"driver": "file", "path": self.root + "/"}
        bucket, _, path = self.root.partition("/")
        return {
            "driver": "s3",
            "bucket": bucket,
            "endpoint": self.s3.endpoint,
            "path": path + "/",
            "aws_region": self.s3.region,
            # The default, 32 retries up to 32 s apart, would hide for a quarter of an hour that the server has gone.
            "s3_request_retries": {"max_retries": 5, "initial_delay": "100ms", "max_delay": "1s"},
            "aws_credentials": {
                "type": "profile",
                "profile": self.s3.profile,
                "credentials_file": self.s3.credentials_file,
                "config_file": self.s3.config_file,
            },
        }

    def child(self, name: str) -> "Location":
        """Give the location of `name` (may hold slashes) below this one."""
        parts = [part for part in name.split("/") if part]
        if ".." in parts:
            raise BadInput(f"{name!r} leaves its location", fix="give a name without '..'")
        root = os.path.join(self.root, *parts) if self.s3 is None else "/".join([self.root, *parts])
        return replace(self, root=root)
