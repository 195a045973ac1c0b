"""A release in which everything carries one number, writers that move `main` between such releases, and readers.

Whatever a reader sees through a snapshot while others merge, revert and land: objects, a volume and a table of one
commit, all with one number. The functions are whole work for a thread or a process and find the repository by its
location.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event as ProcessEvent
from threading import Event
from typing import Any

import numpy as np

import lake
from lake import tables
from lake.errors import ConflictError, NothingToCommit
from lake.repository import CommitId, Repository
from lake.session import Session
from lake.volumes import VolumeSpec, create_volume

SPEC = VolumeSpec("em", "image", "uint8", (8, 8, 8), (1, 1, 1), chunk_zyx=(4, 4, 4))
OBJECTS = tuple(f"numbers/{n}" for n in range(6))
Stop = Event | ProcessEvent


def write_release(session: Session, number: int) -> CommitId:
    """Write a release whose every part says `number`, and land it."""
    for key in OBJECTS:
        session.put(key, b"%d" % number)
    volume = create_volume(session.workspace("volumes/em/"), SPEC)
    volume.write(volume.box, np.full(SPEC.shape_zyx, number, np.uint8))
    rows = [{"supervoxel_id": n, "root_id": number, "run_id": "r"} for n in range(4)]
    tables.overwrite(session.workspace("tables/agglomeration/"), "agglomeration", rows)
    return session.commit(f"release {number}")


def numbers_in(repo: Repository, ref: str) -> set[int]:
    """Read every part of a snapshot; whole, it gives one number."""
    with repo.snapshot(ref) as snapshot:
        found = {int(snapshot.get(key)) for key in OBJECTS}
        volume = snapshot.volume("em")
        found |= {int(value) for value in np.unique(volume.read(volume.box))}
        found |= set(snapshot.table("agglomeration").select("root_id").collect()["root_id"].to_list())
        listed = {entry.key for entry in snapshot.list("numbers/")}
    assert listed == set(OBJECTS)
    return found


def read_until(location: str, stop: Stop, seen: Any) -> None:
    """Look at `main` again and again; puts (commit, numbers) of each look into `seen`."""
    repo = lake.open(location)
    while not stop.is_set():
        head = repo.resolve("main")
        seen.put(sorted(numbers_in(repo, "main")))
        seen.put(sorted(numbers_in(repo, head)))
    repo.close()


def move_main(repo: Repository, rounds: int) -> list[int]:
    """Merge releases into `main` and revert every second one; gives the numbers that `main` has had."""
    had = []
    for number in range(1, rounds + 1):
        branch = f"cand-{number}"
        repo.create_branch(branch, "main")
        with repo.session(branch) as session:
            write_release(session, number)
        merged = repo.merge(branch, "main", f"release {number}")
        had.append(number)
        if number % 2 == 0:
            repo.revert("main", merged, parent=1)
    return had


def under_readers(location: str, readers: int, work: Callable[[], Any], *, processes: bool) -> tuple[Any, list[Any]]:
    """Do `work` while readers look at `main`; gives its result and what they saw, in no order."""
    if not processes:
        from queue import SimpleQueue

        stop, queue = Event(), SimpleQueue[Any]()
        with ThreadPoolExecutor(readers) as pool:
            looks = [pool.submit(read_until, location, stop, queue) for _ in range(readers)]
            try:
                result = work()
            finally:
                stop.set()
            for look in looks:
                look.result()
        return result, [queue.get() for _ in range(queue.qsize())]
    context = multiprocessing.get_context("spawn")
    manager = context.Manager()
    with manager:
        shared, ended = manager.Queue(), context.Event()
        workers = [context.Process(target=read_until, args=(location, ended, shared)) for _ in range(readers)]
        for worker in workers:
            worker.start()
        try:
            while shared.qsize() < readers and all(worker.is_alive() for worker in workers):
                time.sleep(0.05)  # all look before anything moves
            result = work()
        finally:
            ended.set()
            for worker in workers:
                worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * readers
        return result, [shared.get() for _ in range(shared.qsize())]


# -- many writers -----------------------------------------------------------------------------------------------------
def put_commit_merge(location: str, worker: int, rounds: int) -> list[str]:
    """Put and commit on a branch of one's own and merge it into `main`, again and again; gives the keys that landed."""
    repo = lake.open(location)
    landed = []
    for number in range(rounds):
        branch, key = f"w{worker}-{number}", f"by/{worker}/{number}"
        repo.create_branch(branch, "main")
        repo.put(branch, key, key.encode())
        repo.commit(branch, key)
        while True:
            try:
                repo.merge(branch, "main", key)
            except ConflictError as error:
                if isinstance(error, NothingToCommit):
                    raise
                continue  # the branch kept moving: others are many
            break
        landed.append(key)
    repo.close()
    return landed


def count_up(location: str, branch: str, rounds: int, wait_s: float) -> int:
    """Raise the number in an object by one, in sessions that wait for one another; gives how often it was done."""
    repo = lake.open(location)
    for _ in range(rounds):
        with repo.session(branch, wait_s=wait_s) as session:
            held = [entry.key for entry in session.list("count")]
            session.put("count", b"%d" % (int(session.get("count")) + 1 if held else 1))
            session.commit("one more")
    repo.close()
    return rounds


def in_processes(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function once per tuple of arguments, each in a new process, all at once."""
    with multiprocessing.get_context("spawn").Pool(len(calls)) as pool:
        return pool.starmap(function, calls)
