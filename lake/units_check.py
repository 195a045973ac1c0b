"""Checks that the tables and volumes at the heads of branches and tags hang together.

A merge or a lost file can leave a Delta table whose every object is sound and which still cannot be read. So of each
table the log is replayed: versions without a gap, lines that are JSON, every file it speaks of present with the size
it says, checkpoints that can be read. Of each volume the metadata must parse. A unit that several heads share is read
once.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from lake.errors import OF_THE_MACHINE, LakeError
from lake.integrity import Fault, Part, names_of
from lake.repository import CommitId, ObjectStat, Progress, Repository
from lake.wording import counted

_AFTER = "\U0010ffff"  # sorts after every key below a folder
_LOG = re.compile(r"_delta_log/(\d{20})\.json")
_CHECKPOINT = re.compile(r"_delta_log/(\d{20})\.checkpoint(?:\.\d+\.\d+)?\.parquet")
_METADATA = ("info", "provenance", "zarr.json", ".zarray", ".zattrs", ".zgroup", "attributes.json")
_FIX = "revert the commit that tore it, or run the stage again that writes it"
Files = dict[str, ObjectStat]
Heads = dict[CommitId, list[str]]
Problem = tuple[str, str, tuple[str, ...]]  # what is wrong, what to do, and names of the content that is the cause


def check_units(repo: Repository, progress: Progress) -> list[Part]:
    """Check every distinct table and volume at the heads of branches and tags."""
    try:
        heads: Heads = {}
        for ref, commit in {**repo.branches(), **repo.tags()}.items():
            heads.setdefault(commit, []).append(ref)
    except OF_THE_MACHINE:
        raise
    except LakeError as error:
        return [Part("table", 0, 0, (Fault("table", "", f"branches cannot be listed: {error.message}", error.fix),))]
    parts = []
    for kind, root, check in (("table", "tables/", _table), ("volume", "volumes/", _volume)):
        seen: dict[str, tuple[str, list[CommitId], list[Problem]]] = {}
        size = 0
        for done, commit in enumerate(heads, 1):
            progress(f"{kind}s", done, len(heads))
            for unit in _folders(repo, commit, root):
                try:
                    files = _files(repo, commit, unit) if kind == "table" else _metadata(repo, commit, unit)
                except OF_THE_MACHINE:
                    raise
                except LakeError:
                    continue  # a manifest that cannot be read is reported as itself
                signature = _signature(unit, files)
                if signature in seen:
                    seen[signature][1].append(commit)
                    continue
                problems = sorted(set(check(repo, commit, unit, files)))
                size += sum(stat.size for path, stat in files.items() if "_delta_log/" in path or kind == "volume")
                seen[signature] = (unit, [commit], problems)
        faults = tuple(
            _fault(repo, kind, unit, commits, problem, heads)
            for unit, commits, problems in seen.values()
            for problem in problems
        )
        parts.append(Part(kind, len(seen), size, faults))
    return parts


def _fault(
    repo: Repository,
    kind: str,
    unit: str,
    commits: Sequence[CommitId],
    problem: Problem,
    heads: dict[CommitId, list[str]],
) -> Fault:
    infos = sorted((repo.commit_info(commit) for commit in commits), key=lambda commit: commit.created)
    refs = [ref for commit in commits for ref in heads[commit]]
    sentence, fix, causes = problem
    return Fault(kind, unit, f"{unit} at {refs[0]}: {sentence}", fix, causes=causes).held_by(infos, [unit], refs)


def _folders(repo: Repository, commit: CommitId, root: str) -> Iterator[str]:
    """Yield the folders right below `root`, without listing what is in them."""
    after = ""
    while True:
        try:
            stat = next(iter(repo.list(commit, root, after=after, limit=1)), None)
        except OF_THE_MACHINE:
            raise
        except LakeError:
            return  # a manifest that cannot be read is reported as itself
        if stat is None:
            return
        name, slash, _ = stat.key.removeprefix(root).partition("/")
        if slash and name:
            yield f"{root}{name}/"
        after = f"{root}{name}/{_AFTER}" if slash else stat.key


def _files(repo: Repository, commit: CommitId, unit: str) -> Files:
    return {stat.key.removeprefix(unit): stat for stat in repo.list(commit, unit)}


def _metadata(repo: Repository, commit: CommitId, unit: str) -> Files:
    found = {}
    for name in _METADATA:
        for stat in repo.list(commit, unit + name, limit=1):
            if stat.key == unit + name:
                found[name] = stat
    return found


def _signature(unit: str, files: Files) -> str:
    lines = "\n".join(f"{path}\t{stat.size}\t{stat.checksum}" for path, stat in sorted(files.items()))
    return hashlib.sha256(f"{unit}\n{lines}".encode()).hexdigest()


def _volume(repo: Repository, commit: CommitId, unit: str, files: Files) -> Iterator[Problem]:
    if not set(files) & {"info", "zarr.json", ".zarray", ".zgroup", "attributes.json"}:
        yield "there is no metadata file (info, zarr.json, ...)", _FIX, ()
    for name in files:
        try:
            json.loads(repo.get(commit, unit + name))
        except OF_THE_MACHINE:
            raise
        except LakeError as error:
            yield f"{name}: {error.message}", error.fix, names_of(files[name])
        except ValueError as error:
            yield f"{name} is not JSON: {error}", _FIX, names_of(files[name])


def _table(repo: Repository, commit: CommitId, unit: str, files: Files) -> Iterator[Problem]:
    versions = {int(match[1]): path for path in files if (match := _LOG.fullmatch(path))}
    checkpoints = {int(match[1]) for path in files if (match := _CHECKPOINT.fullmatch(path))}
    if not versions:
        if files:
            yield "there is no log (_delta_log)", _FIX, ()
        return
    live: dict[str, int] = {}
    first = 0 if 0 in versions else max((v for v in checkpoints if v < max(versions)), default=-1) + 1
    for path in sorted(path for path in files if _CHECKPOINT.fullmatch(path)):
        try:
            added = _checkpoint(repo.get(commit, unit + path))
        except OF_THE_MACHINE:
            raise
        except (LakeError, pa.ArrowException, OSError, KeyError) as error:
            yield f"{path} cannot be read: {error}", _FIX, names_of(files[path])
            continue
        if first and int(path.rpartition("/")[2][:20]) == first - 1:
            live |= added
    for version in range(first, max(versions) + 1):
        if version not in versions:
            yield f"version {version} is missing from the log", _FIX, ()
            continue
        path = versions[version]
        try:
            _replay(repo.get(commit, unit + path), live)
        except OF_THE_MACHINE:
            raise
        except LakeError as error:
            yield f"{path}: {error.message}", error.fix, names_of(files[path])
        except (ValueError, KeyError, TypeError) as error:
            yield f"{path} cannot be read: {error}", _FIX, names_of(files[path])
    if "_delta_log/_last_checkpoint" in files:
        try:
            json.loads(repo.get(commit, unit + "_delta_log/_last_checkpoint"))
        except (LakeError, ValueError) as error:
            yield f"_last_checkpoint cannot be read: {error}", _FIX, names_of(files["_delta_log/_last_checkpoint"])
    for path, size in live.items():
        if path not in files:
            yield f"{path} is in the log and not there", _FIX, ()
        elif files[path].size != size:
            yield f"{path} has {counted(files[path].size, 'byte')}, the log says {size:,}", _FIX, ()


def _replay(data: bytes, live: dict[str, int]) -> None:
    for line in data.splitlines():
        if not line.strip():
            continue
        action = json.loads(line)
        if (added := action.get("add")) is not None:
            live[unquote(added["path"])] = int(added["size"])
        elif (removed := action.get("remove")) is not None:
            live.pop(unquote(removed["path"]), None)


def _checkpoint(data: bytes) -> dict[str, int]:
    table = pq.ParquetFile(io.BytesIO(data)).read(columns=["add"])
    added = [entry for entry in table.column("add").to_pylist() if entry]
    return {unquote(entry["path"]): int(entry["size"]) for entry in added if entry.get("path")}
