"""The report that opens offline: every page, every link, in a real browser."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import polars as pl
import pytest

from lake.errors import AlreadyExists, NotFound
from lake.repository import Repository
from lake.tables import overwrite
from qc.docs import write_docs
from qc.pages import parse
from qc.run import run_qc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("great_expectations"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--force-color-profile=srgb",
    "--proxy-server=127.0.0.1:9",
)  # fmt: skip


def write(repo: Repository, ref: str, folder: Path) -> Path:
    with repo.snapshot(ref) as snapshot:
        return write_docs(snapshot, folder)


@pytest.fixture(scope="module")
def judged(clean) -> str:
    """A branch with two faults and a table missing, measured."""
    repo: Repository = clean.repo
    repo.create_branch("cand-docs", "cand-r1")
    with repo.snapshot("cand-r1") as snapshot:
        synapses, edges = (snapshot.table(name).collect() for name in ("synapses", "edges"))
    with repo.session("cand-docs", owner="fault") as session:
        overwrite(session.workspace("tables/synapses/"), "synapses", synapses.with_columns(score=pl.lit(1.5)))
        overwrite(session.workspace("tables/edges/"), "edges", edges.with_columns(a=pl.lit(5)))
        session.delete([stat.key for stat in session.list("tables/sections/")])
        session.commit("faults")
    run_qc(repo, "cand-docs")
    return "cand-docs"


@pytest.fixture(scope="module")
def report(clean, judged: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = write(clean.repo, judged, tmp_path_factory.mktemp("report") / "docs")
    assert index.name == "index.html"
    return index.parent


def pages(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.html")):
        yield path, path.read_text(encoding="utf-8")


def test_there_is_a_page_for_each_suite_and_table_twice_over(report: Path) -> None:
    for kind in ("validations", "expectations"):
        names = {path.stem for path in (report / kind).iterdir()}
        assert {"tables-synapses", "graph-edges", "completeness-qc_metrics"} <= names
        assert "tables-sections" not in names
    assert {path.suffix for path in report.rglob("*") if path.is_file()} == {".html", ".json"}


def test_no_page_refers_to_anything_on_a_network(report: Path) -> None:
    seen = 0
    for path, text in pages(report):
        assert not re.search(r"(src|href|action|srcset)\s*=\s*[\"']?\s*(https?:|//|ftp:)", text, re.I), path
        assert not re.search(r"url\(|@import|<script|<iframe|<object", text, re.I), path
        assert "default-src 'none'" in text
        seen += 1
    assert seen > 20


def test_every_link_leads_to_a_page_or_place_of_the_report(report: Path) -> None:
    for path, text in pages(report):
        nodes = list(parse(text).walk())
        ids = {node.attributes["id"] for node in nodes if "id" in node.attributes}
        for href in (node.attributes["href"] for node in nodes if node.tag == "a"):
            target, _, anchor = href.partition("#")
            assert (path.parent / unquote(target)).is_file() if target else anchor in ids, (path, href)


def test_the_pages_say_what_failed_and_what_was_observed(report: Path) -> None:
    index = parse((report / "index.html").read_text(encoding="utf-8")).text
    assert "synapses.score is at least 0 and at most 1" in index
    assert "there is no table sections" in index
    assert "0_1_1" in index
    page = parse((report / "validations/tables-synapses.html").read_text(encoding="utf-8")).text
    assert "2 unexpected values found" in page
    assert "Failed" in page
    edges = parse((report / "validations/graph-edges.html").read_text(encoding="utf-8")).text
    assert "no edges with an end that is no supervoxel" in edges


def test_written_again_it_is_the_same_and_what_is_not_ours_stays(clean, judged: str, report: Path, tmp_path) -> None:
    folder = tmp_path / "docs"
    write(clean.repo, judged, folder)
    (folder / "mine.txt").write_text("keep")
    (folder / "validations" / "old.html").write_text("ours, of before")
    listed = (folder / "report.json").read_text().replace('"index.html"', '"index.html","validations/old.html","../x"')
    (folder / "report.json").write_text(listed)
    write(clean.repo, judged, folder)
    assert (folder / "mine.txt").read_text() == "keep"
    assert not (folder / "validations" / "old.html").exists()
    (folder / "mine.txt").unlink()
    both = [{path.relative_to(at): path.read_bytes() for path in at.rglob("*.*")} for at in (folder, report)]
    assert both[0] == both[1]


def test_a_folder_with_something_else_in_it_is_left_alone(clean, judged: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(AlreadyExists, match="something other than a quality report"):
        write(clean.repo, judged, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_branch_that_was_not_measured_has_no_report(clean, judged: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cand-r1 has no QC") as caught:
        write(clean.repo, "cand-r1", tmp_path / "docs")
    assert "emlake qc run cand-r1" in caught.value.fix
    clean.repo.create_branch("cand-stale", judged)
    with clean.repo.session("cand-stale", owner="run") as session:
        session.put("note", b"the data changed")
        session.commit("later")
    with pytest.raises(NotFound, match="no QC of the data it holds"):
        write(clean.repo, "cand-stale", tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_where_the_library_now_finds_otherwise_the_record_stands_and_the_report_says_so(
    clean, judged: str, tmp_path: Path
) -> None:
    clean.repo.create_branch("cand-other", judged)
    data = clean.repo.commit_info(judged).metadata["qc_of"]
    with clean.repo.snapshot(judged) as snapshot:
        results = snapshot.table("qc_results").collect()
    name = "edges has rows"
    turned = pl.when(pl.col("expectation") == name).then(pl.lit(value=False)).otherwise(pl.col("passed"))
    with clean.repo.session("cand-other", owner="qc") as session:
        overwrite(session.workspace("tables/qc_results/"), "qc_results", results.with_columns(passed=turned))
        session.commit("another verdict", {"qc_of": data})
    text = parse(write(clean.repo, "cand-other", tmp_path / "docs").read_text(encoding="utf-8")).text
    assert f"tables: {name} is now passed" in text


# -- in a browser ---------------------------------------------------------------------------------------------------
@pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: install chromium to see that the pages open offline")
@pytest.mark.parametrize("name", ["index.html", "validations/tables-synapses.html"])
def test_a_browser_without_network_shows_the_page_in_its_style(report: Path, tmp_path: Path, name: str) -> None:
    seen = picture(report / name, tmp_path)
    colours = {tuple(colour) for colour in np.unique(seen.reshape(-1, 3), axis=0).tolist()}
    # The bar across the top is paper, the page below it is not; without our style all of it would be white.
    assert tuple(seen[3, 3]) == PAPER
    assert tuple(seen[-3, 3]) == BACK
    assert len(colours) > 30
    assert {GOOD, BAD} <= {nearest(colours, wanted) for wanted in (GOOD, BAD)}
    # Nothing runs out of the window to the right.
    assert (seen[-200:, -3:] == BACK).all()


@pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: install chromium to see that the pages open offline")
def test_what_is_folded_opens_without_a_script(report: Path, tmp_path: Path) -> None:
    path = report / "validations/tables-synapses.html"
    anchor = re.search(r'href="(#[^"]*collapse-body)"', path.read_text(encoding="utf-8"))
    assert anchor is not None
    folded, opened = (picture(path, tmp_path, at) for at in ("", anchor[1]))
    assert last_row(opened) > last_row(folded) + 100


PAPER, BACK, GOOD, BAD = (255, 255, 255), (245, 247, 249), (23, 121, 74), (179, 38, 30)


def picture(path: Path, scratch: Path, anchor: str = "") -> np.ndarray:
    """What the browser shows, (y, x, 3) RGB; no proxy answers, so nothing can be fetched."""
    assert CHROMIUM is not None
    png, profile = scratch / f"{path.stem}{len(anchor)}.png", scratch / "profile"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--window-size=1280,2400", f"--screenshot={png}"]
    subprocess.run([*command, f"{path.as_uri()}{anchor}"], capture_output=True, timeout=400, check=True)
    return cv2.imread(str(png))[:, :, ::-1]


def nearest(colours: set[tuple[int, ...]], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The wanted colour if one like it is there: letters are drawn with soft edges."""
    gaps = [max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) for colour in colours]
    return wanted if min(gaps) <= 12 else (0, 0, 0)


def last_row(seen: np.ndarray) -> int:
    """The last row in which there is anything but background."""
    return int(np.flatnonzero((seen != BACK).any(axis=(1, 2)))[-1])
