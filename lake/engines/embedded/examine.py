"""What the file system under a repository can do, tried out, for `emlake doctor`."""

import os
from pathlib import Path

from lake.engines.embedded.audit import keeps_rows_twice
from lake.engines.embedded.engine import Engine
from lake.engines.embedded.files import clone, in_threads
from lake.engines.embedded.layout import format_of
from lake.engines.embedded.mounts import MOUNTS, file_system_of
from lake.engines.embedded.sharing import has_default, is_shared
from lake.repository import Finding


def examine(engine: Engine) -> list[Finding]:
    """Give (what, state, detail): file system, links, shared extents, objects of other users, leftovers."""
    findings: list[Finding] = [("format", "ok", str(format_of(engine.root)))]
    with engine.db.read() as con:
        twice = keeps_rows_twice(con)
    findings.append(
        ("refs", "twice", "`emlake scrub` finds any flipped bit in refs")
        if twice
        else ("refs", "once", "a flipped bit in the name of a tag goes unnoticed; a new repository keeps refs twice")
    )
    if MOUNTS.exists():
        kind, point = file_system_of(engine.root)
        findings.append(("file system", "ok", f"{kind}, mounted at {point}"))
    if is_shared(engine.root):
        findings.append(_group(engine.root))
    if engine.refused:
        findings.append(("access", "read-only", engine.refused))
    else:
        findings += _tried(engine)
    foreign = sum(in_threads(_foreign, sorted((engine.root / "objects").iterdir())[:16]))
    if foreign and not engine.refused:
        findings.append(
            ("owners", "mixed", "objects of other users: the kernel may refuse to link them, so they are copied")
        )
    findings.append(_staged(engine))
    return findings


def _staged(engine: Engine) -> Finding:
    """Count what was put or deleted and is not committed, by branch."""
    query = "SELECT name, count(*) FROM staging JOIN branches USING (token) GROUP BY name ORDER BY name"
    with engine.db.read() as con:
        counts = con.execute(query).fetchall()
    told = ", ".join(f"{count:,} on {name}" for name, count in counts)
    return "staged objects", "ok", f"not committed yet: {told}" if told else "none"


def _group(root: Path) -> Finding:
    if has_default(root):
        return "group", "ok", "whatever its members write here is the group's"
    return "group", "by umask", f"members need umask 002, or once: setfacl -R -d -m g::rwX {root}"


def _tried(engine: Engine) -> list[Finding]:
    """Try what takes files; on a full disk, say so."""
    try:
        source, target = engine.scratch.new(), engine.scratch.new()
        source.write_bytes(b"x" * 65_536)
        return [_links(source, target), _clones(source, target)]
    except OSError as error:
        return [("room", "none", f"{error.strerror}: what links can do here was not tried")]


def _links(source: Path, target: Path) -> Finding:
    try:
        os.link(source, target)
    except OSError as error:
        return "hard links", "refused", f"{error.strerror}: views and workspaces are copies, which take room and time"
    target.unlink()
    return "hard links", "ok", "views and large files of workspaces take no room"


def _clones(source: Path, target: Path) -> Finding:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        able = clone(reader.fileno(), writer.fileno())
    if able:
        return "shared extents", "ok", "a program that writes into a workspace's file harms no commit"
    detail = "large files of a workspace are links: a program run as root that writes into one damages the object"
    return "shared extents", "none", detail


def _foreign(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.stat().st_uid != os.geteuid() for entry in entries)
