"""What `emlake doctor` looks at on the machine itself."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from lake.wording import counted

if TYPE_CHECKING:
    from lake.repository import Finding, Repository

_PACKAGES = (
    "deltalake", "pyarrow", "duckdb", "duckdb-extension-delta", "polars", "tensorstore", "numpy", "torch",
    "great-expectations", "lakefs", "lakefs-sdk",
)  # fmt: skip


#: What `emlake doctor` tells that is no fault: it works as it is, and could do more, or will not for long.
_ADVICE = {
    ("access", "read-only"),
    ("disk", "low"),
    ("group", "by umask"),
    ("hard links", "refused"),
    ("lakefs program", "none"),
    ("owners", "mixed"),
    ("refs", "once"),
    ("refs", "twice"),
    ("repository", "none"),
    ("shared extents", "none"),
    ("stored bytes", "never"),
    ("stored bytes", "ok so far"),
    ("sweep", "done"),
}


def faults(findings: Iterable["Finding"]) -> list["Finding"]:
    """Choose what is wrong: whatever is neither ok nor known to be advice. A lock, whoever holds it, is neither."""
    return [found for found in findings if found[1] != "ok" and found[0] != "lock" and found[:2] not in _ADVICE]


def examine() -> list["Finding"]:
    """Give (what, state, detail) for Python, packages, rooms, memory, disk and the lakeFS program."""
    findings: list[Finding] = [("python", "ok", f"{platform.python_version()} on {sys.platform} {platform.machine()}")]
    for name in _PACKAGES:
        try:
            findings.append((name, "ok", version(name)))
        except PackageNotFoundError:
            findings.append((name, "missing", "run `make demo`, or pip install emlake"))
    findings += _rooms()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    findings.append(("machine", "ok", f"{counted(cores, 'core')}, {memory:.1f} GiB"))
    free = shutil.disk_usage(".").free / 2**30
    findings.append(("disk", "ok" if free > 5 else "low", f"{free:.1f} GiB free here"))
    from lake.server import find_program

    program = find_program()
    findings.append(
        ("lakefs program", "ok" if program else "none", str(program or "only needed for lakefs:// repositories"))
    )
    return findings


def stored_bytes(repo: "Repository") -> list["Finding"]:
    """Say what the newest scrubs of these very bytes found: a clone is told nothing of its source's."""
    from lake.integrity import CONTENTS, Inspectable
    from lake.scrub_record import recall

    if not isinstance(repo, Inspectable):
        return []
    known = recall(repo, repo.inspector().place)
    if known.trouble:
        cure = "; `emlake scrub` begins its record anew" if known.lost else ""
        return [("stored bytes", "unknown", f"what scrubs recorded cannot be read: {known.trouble}{cure}")]
    if known.damaged:
        names = ", ".join(f"{kind} {name[:16]}" for kind, name in sorted(known.damaged)[:3])
        more = f" and {len(known.damaged) - 3} more" if len(known.damaged) > 3 else ""
        told = f"{names}{more}; `emlake scrub` says who is hit and how to heal"
        return [("stored bytes", "damaged", told)]
    if not known.regions:
        return [("stored bytes", "never", "no scrub has read them back: `emlake scrub`, every night")]
    gone = len({name for kind, name in known.accepted if kind in CONTENTS})
    lost = f"; {counted(gone, 'object')} accepted as lost: `emlake scrub` lists them" if gone else ""
    checked = [region.checked for region in known.regions if region.checked is not None]
    if len(checked) < len(known.regions):
        return [("stored bytes", "ok so far", f"some were never read back: `emlake scrub`, every night{lost}")]
    return [("stored bytes", "ok", f"read back since {min(checked):%Y-%m-%d %H:%M}, but for what came later{lost}")]


def _rooms() -> list["Finding"]:
    # A package on PyPI is also called `releases`: whichever is installed last would win.
    findings: list[Finding] = []
    homes = {}
    for room in ("lake", "transforms", "qc", "releases", "sql"):
        spec = importlib.util.find_spec(room)
        places = list(spec.submodule_search_locations or []) if spec else []
        homes[room] = os.path.dirname(places[0]) if places else ""
    odd = [room for room, home in homes.items() if home != homes["lake"]]
    findings.append(
        ("rooms", "mixed" if odd else "ok", f"{', '.join(odd)} comes from elsewhere" if odd else homes["lake"])
    )
    return findings
