"""The folder where emlake keeps what belongs to the user and not to a repository: servers it started, credential files.

`$EMLAKE_HOME`, or the platform's folder for user data.
"""

import os
import sys
import tempfile
from pathlib import Path


def home() -> Path:
    """Give `$EMLAKE_HOME`, or the user's data folder with `emlake` below; it need not exist yet."""
    setting = os.environ.get("EMLAKE_HOME")
    if setting:
        return Path(setting).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "emlake"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "emlake"


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, readable by its owner alone (0600, in a folder of 0700)."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # mkstemp opens with 0600, so the secret is never readable by others, not even for a moment.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
