"""Re-computes what a manifest claims from the bytes, with no trust in the writer."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from lake.digests import bytes_digest
from lake.errors import OF_THE_MACHINE, LakeError, ObjectNotFound
from lake.repository import Repository
from lake.tables import collect, content_digest
from releases.diff import release_diff
from releases.history import Release, find
from releases.manifest import manifest_digest, read_manifest
from releases.objects import OUTSIDE, artifact_roots, hash_objects


@dataclass(frozen=True, slots=True)
class Verification:
    """Every fault found; a release without faults is what its manifest says."""

    release: str
    objects: int
    bytes: int
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def verify(repo: Repository, name: str, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Verify release `name`: every object's sha256, all digests, table contents, and the diff from its parent."""
    release = find(repo, name)
    folder = f"_releases/{name}/"
    faults: list[str] = []
    manifest = read_manifest(repo, name, release.merge)
    digest = manifest_digest(repo.get(release.merge, folder + "manifest.json"))
    if digest != release.manifest_digest:
        faults.append(f"{folder}manifest.json: digest {digest} is not the release's {release.manifest_digest}")
    files = {path: repo.get(release.merge, folder + path) for path in manifest["files"]}
    faults += [
        f"{folder}{path}: digest {bytes_digest(data)} is not the manifest's {manifest['files'][path]}"
        for path, data in files.items()
        if bytes_digest(data) != manifest["files"][path]
    ]
    if faults:
        return Verification(name, 0, 0, tuple(faults))
    listed = pl.read_parquet(io.BytesIO(files["objects.parquet"]))
    faults += _objects(repo, release, listed, progress)
    faults += _roots(manifest, listed)
    if not faults:
        faults += _tables(repo, release, manifest)
        faults += _diff(repo, release, manifest)
    return Verification(name, listed.height, int(listed["size"].sum()), tuple(faults))


def _objects(
    repo: Repository, release: Release, listed: pl.DataFrame, progress: Callable[[int, int], None] | None
) -> list[str]:
    want = {row["path"]: row["sha256"] for row in listed.iter_rows(named=True)}
    stats = [s for s in repo.list(release.merge) if not s.key.startswith(OUTSIDE)]
    faults = [f"{path}: listed in the manifest and missing" for path in sorted(want.keys() - {s.key for s in stats})]
    faults += [f"{s.key}: present and not listed in the manifest" for s in stats if s.key not in want]
    for number, stat in enumerate(stats, 1):
        # One by one: a damaged object must not hide the others.
        try:
            (_, digest), *_ = hash_objects(repo, release.merge, [stat])
        except ObjectNotFound:
            faults.append(f"{stat.key}: its bytes are gone")
        except OF_THE_MACHINE:
            raise
        except LakeError as error:
            named = stat.key in error.message
            faults.append(error.message if named else f"{stat.key}: {error.message}")
        else:
            if stat.key in want and digest != want[stat.key]:
                faults.append(f"{stat.key}: sha256 {digest} is not the manifest's {want[stat.key]}")
        if progress:
            progress(number, len(stats))
    return faults


def _roots(manifest: dict[str, object], listed: pl.DataFrame) -> list[str]:
    claimed = {a["prefix"]: a for a in manifest["artifacts"]}  # type: ignore[attr-defined]
    found = {str(a["prefix"]): a for a in artifact_roots(listed)}
    return [
        f"{prefix}: objects, bytes or Merkle root differ from the manifest"
        for prefix in sorted(claimed.keys() | found.keys())
        if any(
            claimed.get(prefix, {}).get(k) != found.get(prefix, {}).get(k) for k in ("objects", "bytes", "merkle_root")
        )
    ]


def _tables(repo: Repository, release: Release, manifest: dict[str, object]) -> list[str]:
    faults = []
    for artifact in manifest["artifacts"]:  # type: ignore[attr-defined]
        if artifact["format"] != "delta":
            continue
        table = artifact["name"]
        with repo.snapshot(release.merge) as snapshot:
            rows = int(snapshot.table(table).select(pl.len()).pipe(collect).item())
        digest = content_digest(repo.location_of(release.merge, artifact["prefix"]), table)
        if rows != artifact["rows"] or digest != artifact["content_digest"]:
            faults.append(f"{artifact['prefix']}: {rows} rows with digest {digest} are not what the manifest says")
    return faults


def _diff(repo: Repository, release: Release, manifest: dict[str, object]) -> list[str]:
    parent = manifest["identity"]["parent_release"]  # type: ignore[index]
    old = find(repo, parent).merge if parent else None
    if release_diff(repo, old, release.qc).to_json() != manifest["diff"]:
        return [f"the diff from {parent or 'nothing'} is not what the manifest says"]
    return []
