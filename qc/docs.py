"""Writes the quality report of a commit: Great Expectations' Data Docs as pages that open with no network.

::

    index.html                        what was measured, what failed, every region
    validations/<suite>-<table>.html  expectations with what was observed
    expectations/<suite>-<table>.html what is expected
    report.json                       the pages of this report, so that writing it again removes nothing else

The verdict is not made here: it lies in `qc_results`. The suites run again, because the library renders only what it
has just run; where an outcome differs from the one on record, the index says so.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import polars as pl

from lake.digests import canonical_json
from lake.errors import AlreadyExists, BadInput, NotFound
from lake.snapshot import Snapshot
from lake.tables import collect
from qc.index import index_body
from qc.pages import offline, page
from qc.run import measured
from qc.suites import run_suites

_LIST = "report.json"
_OURS = re.compile(r"index\.html|(validations|expectations)/[A-Za-z0-9_.-]+\.html")


def write_docs(snapshot: Snapshot, folder: Path) -> Path:
    """Write the report of the snapshot's commit and give the path of its first page.

    Parameters
    ----------
    folder : Path
        New, empty, or a report that was written here before, which is replaced. Other files are never touched.

    Raises
    ------
    NotFound
        The commit has no QC, or its data changed after it.
    AlreadyExists
        The folder holds something else.
    """
    data_commit = measured(snapshot.repo, snapshot.commit)
    if data_commit is None:
        raise NotFound(
            f"{snapshot.ref} has no QC of the data it holds", fix=f"run `emlake qc run {snapshot.ref}` first"
        )
    old = _old_pages(folder)
    metrics = snapshot.table("qc_metrics").sort("metric", "scope", "scope_id").pipe(collect)
    stored = snapshot.table("qc_results").sort("suite", "expectation").pipe(collect)
    pages = _pages(snapshot, metrics, stored, data_commit)
    for name in old - set(pages):
        (folder / name).unlink(missing_ok=True)
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "index.html"


def _old_pages(folder: Path) -> set[str]:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return set()
    if not folder.is_dir():
        raise BadInput(f"{folder} is a file", fix="name a folder")
    try:
        listed = json.loads((folder / _LIST).read_text(encoding="utf-8"))["pages"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AlreadyExists(f"{folder} holds something other than a quality report", fix="name a new folder") from error
    return {name for name in listed if isinstance(name, str) and _OURS.fullmatch(name)}


def _pages(snapshot: Snapshot, metrics: pl.DataFrame, stored: pl.DataFrame, data_commit: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="emlake-qc-") as scratch:
        site = Path(scratch)
        again = run_suites(snapshot, metrics, site=site)
        texts = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    names = {source: _name(source) for source in sorted(texts)}
    made = {}
    for source, target in names.items():
        if target != "index.html":
            title = target.removesuffix(".html").replace("/", ": ")
            made[target] = page(title, offline(texts[source], source, target, names), home="../index.html")
    body = index_body(snapshot, metrics, stored, _changed(stored, again), data_commit, set(made))
    made["index.html"] = page(f"Quality of {snapshot.ref}", body)
    made = dict(sorted(made.items()))
    return {**made, _LIST: canonical_json({"pages": sorted(made)}).decode()}


def _name(source: str) -> str:
    """Flatten `validations/<suite>/<run>/<time>/<batch>.html`: a report has one run."""
    parts = source.removesuffix(".html").split("/")
    return "index.html" if parts == ["index"] else f"{parts[0]}/{quote(parts[1], safe='')}.html"


def _changed(stored: pl.DataFrame, again: pl.DataFrame) -> Mapping[tuple[str, str], bool | None]:
    """Give the expectations whose outcome is another one today, with today's."""
    keys = ("suite", "expectation", "passed")
    before = {(suite, name): passed for suite, name, passed in stored.select(keys).iter_rows()}
    now = {(suite, name): passed for suite, name, passed in again.select(keys).iter_rows()}
    return {key: passed for key, passed in now.items() if before.get(key) is not passed}
