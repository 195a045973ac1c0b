"""Suites of expectations, run by the library itself on real tables: passed, failed, not checked, and by whom."""

import polars as pl
import pytest

from lake.repository import Repository
from qc import suites
from qc.measure import measure
from qc.run import QcRun, measured, run_qc
from qc.suites import Check, run_suites

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("great_expectations"),
]


def outcomes(results: pl.DataFrame) -> dict[str, bool | None]:
    return dict(results.select("expectation", "passed").iter_rows())


def reason(results: pl.DataFrame, expectation: str) -> str:
    return results.row(by_predicate=pl.col("expectation") == expectation, named=True)["reason"] or ""


def figures(repo: Repository, ref: str) -> pl.DataFrame:
    with repo.snapshot(ref) as snapshot:
        return pl.DataFrame([metric.row() for metric in measure(snapshot)], infer_schema_length=None)


def check(repo: Repository, ref: str) -> pl.DataFrame:
    metrics = figures(repo, ref)
    with repo.snapshot(ref) as snapshot:
        return run_suites(snapshot, metrics)


@pytest.fixture(scope="module")
def clean_results(clean) -> pl.DataFrame:
    return check(clean.repo, "cand-r1")


def test_clean_data_pass_every_expectation(clean_results: pl.DataFrame) -> None:
    assert set(outcomes(clean_results).values()) == {True}
    assert set(clean_results["suite"]) == {"tables", "graph", "completeness"}
    assert clean_results.height == sum(len(checks) for checks in suites.suites().values())
    assert set(clean_results["table_name"]) >= {"supervoxels", "edges", "synapses", "qc_metrics"}


def test_a_fault_fails_its_expectation_with_a_reason_and_no_other(clean, spoil, clean_results) -> None:
    with clean.repo.snapshot("cand-r1") as snapshot:
        synapses, edges = (snapshot.table(name).collect() for name in ("synapses", "edges"))
    branch = spoil(synapses=synapses.with_columns(score=pl.lit(1.5)), edges=edges.with_columns(count=pl.lit(0)))
    results = check(clean.repo, branch)
    failed = {name for name, passed in outcomes(results).items() if not passed}
    assert failed == {"synapses.score is at least 0 and at most 1", "edges.count is at least 1"}
    assert reason(results, "edges.count is at least 1") == "3 of 3 rows break it"
    assert '"unexpected_count":3' in results.filter(expectation="edges.count is at least 1")["observed"][0]


def test_what_is_not_there_is_not_checked_and_says_so(clean, spoil) -> None:
    results = check(clean.repo, spoil(sections=None))
    open_ = {name for name, passed in outcomes(results).items() if passed is None}
    assert open_ == {
        "sections has rows", "sections.section is unique", "sections.coverage is at least 0 and at most 1",
        "coverage_min within limits",
    }  # fmt: skip
    assert "no table sections" in reason(results, "sections has rows")
    assert "unknown" in reason(results, "coverage_min within limits")


def test_an_incomplete_volume_and_a_broken_graph_fail(clean, change) -> None:
    def edit(session) -> None:
        chunks = [stat.key for stat in session.list("volumes/segmentation/") if stat.key[-1].isdigit()]
        session.delete([*chunks[:1], *(stat.key for stat in session.list("tables/connections/"))])

    results = check(clean.repo, change(edit))
    found = outcomes(results)
    assert found["missing_blocks within limits"] is False
    assert found["graph_connections_add_up"] is None


def test_a_check_that_cannot_run_is_not_a_pass(clean, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Check("no such column", "ExpectColumnValuesToBeUnique", "edges", {"column": "nothing"})
    monkeypatch.setattr(suites, "TABLES", (wrong,))
    results = check(clean.repo, "cand-r1")
    assert outcomes(results)["no such column"] is None
    assert reason(results, "no such column")


def test_the_library_writes_nothing_on_stdout(clean, capfd: pytest.CaptureFixture[str]) -> None:
    metrics = figures(clean.repo, "cand-r1")
    capfd.readouterr()
    with clean.repo.snapshot("cand-r1") as snapshot:
        run_suites(snapshot, metrics)
    assert capfd.readouterr().out == ""


# -- the run that stores it -----------------------------------------------------------------------------------------
@pytest.fixture
def done(clean, change) -> tuple[str, str, QcRun]:
    """A branch, its head before QC, and the run."""
    branch = change()
    head = clean.repo.resolve(branch)
    return branch, head, run_qc(clean.repo, branch)


def test_qc_lands_as_one_commit_on_top_of_the_data_of_a_protected_branch(clean, done) -> None:
    repo: Repository = clean.repo
    branch, head, run = done
    commit = repo.commit_info(branch)
    assert (commit.id, commit.parents) == (run.commit, (head,))
    assert commit.metadata["qc_of"] == head == run.data_commit
    assert "cand-*" in repo.protected()
    changed = {change.key.split("/")[1] for change in repo.diff(head, run.commit)}
    assert changed == {"qc_metrics", "qc_results"}
    with repo.snapshot(branch) as snapshot:
        for name, frame in (("qc_metrics", run.metrics), ("qc_results", run.results)):
            stored = snapshot.table(name).collect()
            assert stored.height == frame.height
            assert set(stored["data_commit"]) == {head}
    assert measured(repo, branch) == head


def test_data_that_were_measured_are_not_measured_again(clean, done) -> None:
    branch, _, first = done
    again = run_qc(clean.repo, branch)
    assert (again.made, again.commit, again.data_commit) == (False, first.commit, first.data_commit)
    assert again.metrics.height == first.metrics.height
    with clean.repo.session(branch, owner="gate") as session:
        session.put(f"_qc/{first.commit}.json", b"{}")
        session.commit("verdict", {"judged": first.commit})
    assert run_qc(clean.repo, branch).commit == first.commit
    assert measured(clean.repo, branch) == first.data_commit


def test_data_that_changed_are_measured_again_and_the_old_figures_replaced(clean, done) -> None:
    branch, _, first = done
    with clean.repo.session(branch, owner="run") as session:
        session.delete([stat.key for stat in session.list("tables/ground_truth_synapses/")])
        changed = session.commit("less is known")
    assert measured(clean.repo, branch) is None
    second = run_qc(clean.repo, branch)
    assert second.made
    assert second.data_commit == changed
    with clean.repo.snapshot(branch) as snapshot:
        stored = snapshot.table("qc_metrics").collect()
    assert set(stored["data_commit"]) == {changed}
    assert first.metrics.filter(metric="synapse_f1", scope="global")["status"][0] == "ok"
    assert stored.filter(metric="synapse_f1", scope="global")["status"][0] == "unknown"
