"""What a killed publication and a killed rollback must leave, for `lake.testing.crash`."""

from lake.repository import Repository
from lake.testing.crash import Operation, check_sessions_swept
from releases.history import history
from releases.publish import publish, rollback
from releases.verify import verify


def decisions(repo: Repository, kind: str) -> list[str]:
    with repo.snapshot("main") as snapshot:
        return [
            r for (r,) in snapshot.sql(f"SELECT release FROM ops.decisions WHERE kind = '{kind}' ORDER BY ts").rows()
        ]


class Publish(Operation):
    """Round n publishes the candidate r<n+1>, which is there and judged."""

    once = True

    def round(self, repo: Repository, number: int) -> None:
        publish(repo, f"r{number + 1}", user="ann")

    def landed(self, repo: Repository) -> int:
        return len(history(repo))

    def check(self, repo: Repository, landed: int) -> None:
        releases = history(repo)
        assert [release.name for release in releases] == [f"r{n + 1}" for n in range(landed)]
        # Main holds the newest release, byte for byte what was judged, or is as it was.
        if releases:
            assert repo.resolve("main") == releases[-1].merge
            late = [change.key for change in repo.diff(releases[-1].qc, "main")]
            assert late
            assert all(key.startswith(("_qc/", f"_releases/r{landed}/")) for key in late)
        else:
            assert list(repo.list("main", "volumes/")) == []
        tags = {name: commit for name, commit in repo.tags().items() if not name.startswith("lock.")}
        assert tags.items() <= {release.name: release.merge for release in releases}.items()

    def check_clean(self, repo: Repository, landed: int) -> None:
        self.check(repo, landed)
        names = [f"r{n + 1}" for n in range(landed)]
        check_sessions_swept(repo)
        assert list(repo.tags()) == sorted(names)
        assert sorted(decisions(repo, "publish")) == sorted(names)
        assert repo.snapshot("main").sql("SELECT count(*) FROM ops.releases").rows() == [(landed,)]
        assert verify(repo, names[-1]).ok


class Rollback(Operation):
    """Release r1 is published and then rolled back."""

    once = True

    def round(self, repo: Repository, number: int) -> None:
        rollback(repo, "r1", user="ann", reason="a drill")

    def landed(self, repo: Repository) -> int:
        return sum(1 for release in history(repo) if release.undone_by)

    def check(self, repo: Repository, landed: int) -> None:
        (release,) = history(repo)
        assert repo.tags()["r1"] == release.merge
        held = release.previous_main if landed else release.merge
        assert list(repo.diff(held, "main")) == []
        assert verify(repo, "r1").ok

    def check_clean(self, repo: Repository, landed: int) -> None:
        self.check(repo, landed)
        assert decisions(repo, "rollback") == ["r1"]
        check_sessions_swept(repo)
        assert list(repo.tags()) == ["r1"]


OPERATIONS = {"publish": Publish(), "rollback": Rollback()}
