"""What `emlake doctor` looks at on the machine itself."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "deltalake", "pyarrow", "duckdb", "duckdb-extension-delta", "polars", "tensorstore", "numpy", "torch",
    "great-expectations", "lakefs", "lakefs-sdk",
)  # fmt: skip
Finding = tuple[str, str, str]


def examine() -> list[Finding]:
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
    findings.append(("machine", "ok", f"{cores} cores, {memory:.1f} GiB"))
    free = shutil.disk_usage(".").free / 2**30
    findings.append(("disk", "ok" if free > 5 else "low", f"{free:.1f} GiB free here"))
    from lake.server import find_program

    program = find_program()
    findings.append(
        ("lakefs program", "ok" if program else "none", str(program or "only needed for lakefs:// repositories"))
    )
    return findings


def _rooms() -> list[Finding]:
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
