"""Bytes into a lakeFS server on loopback: ours against the best of what one writes by hand.

By hand: bare REST (urllib3), the S3 gateway (boto3, obstore), and linking in place (ask for an address in the local
store, copy the file there, link it). Linking without the copy is shown, not compared: the object would change with the
file it came from.

A busy machine makes equal things differ by half, so nothing is compared with what ran at another time: a round is
short, has each way once in an order of its own, and ways are compared within it. Judged are the median over rounds and
the CPU time of client and server together. Ours runs twice a round: how far the two differ is what a ratio means here.
What a file system makes of thousands of new files beside other writers scatters most, so a server with its store in
memory is judged too, and no round finds the files of the one before.
"""

import hashlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

import lake
from lake import server
from lake.testing.server import program

boto3 = pytest.importorskip("boto3")
obstore = pytest.importorskip("obstore")
pytestmark = [pytest.mark.bench, pytest.mark.lakefs]

THREADS = 16
#: Bytes, objects, rounds.
CASES = {"4KiB": (4 << 10, 300, 25), "1MiB": (1 << 20, 32, 21), "64MiB": (64 << 20, 2, 15)}
OURS, AGAIN, BARE = "ours", "ours again", "link, bare"
Put = Callable[[str, Path], object]


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path) -> Iterator[Path]:
    """Where the server and the files are."""
    if request.param == "disk":
        yield tmp_path
    elif not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory: /dev/shm cannot be written")
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="emlake-bench-") as name:
            yield Path(name)


@pytest.fixture
def state(folder, monkeypatch) -> Iterator[server.ServerState]:
    made = server.start(port=server.free_port(), home=folder, program=program())
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    yield made
    server.stop(home=folder)


@pytest.fixture
def repo(state) -> Iterator[lake.repository.Repository]:
    made = lake.create(state.location("bench"))
    yield made
    made.close()


class ByHand:
    """The ways into one repository, each a function of key and file."""

    def __init__(self, repo) -> None:
        address = repo.address
        self.name, self.base = address.name, f"{address.origin}/api/v1/repositories/{address.name}/branches/main"
        self.pool = urllib3.PoolManager(maxsize=THREADS, retries=False, blocksize=1 << 20)
        keys = {"aws_access_key_id": address.access_key_id, "aws_secret_access_key": address.secret_access_key}
        self.headers = urllib3.make_headers(basic_auth=f"{address.access_key_id}:{address.secret_access_key}")
        options = boto3.session.Config(
            max_pool_connections=THREADS,
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
        )
        self.boto = boto3.client("s3", endpoint_url=address.origin, region_name="us-east-1", config=options, **keys)
        self.store = obstore.store.S3Store(
            self.name,
            prefix="main/",
            endpoint=address.origin,
            access_key_id=address.access_key_id,
            secret_access_key=address.secret_access_key,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def rest(self, key: str, file: Path) -> None:
        size = file.stat().st_size
        headers = {**self.headers, "Content-Type": "application/octet-stream", "Content-Length": str(size)}
        with file.open("rb") as stream:
            body = stream.read() if size < 1 << 20 else stream
            answer = self.pool.request("POST", f"{self.base}/objects?path={key}", body=body, headers=headers)
        assert answer.status == 201

    def s3_boto3(self, key: str, file: Path) -> None:
        with file.open("rb") as stream:
            self.boto.put_object(Bucket=self.name, Key=f"main/{key}", Body=stream)

    def s3_obstore(self, key: str, file: Path) -> None:
        obstore.put(self.store, key, file, use_multipart=False)

    def linked_copy(self, key: str, file: Path) -> None:
        self._link(key, file, copied=True)

    def linked_bare(self, key: str, file: Path) -> None:
        self._link(key, file, copied=False)

    def _link(self, key: str, file: Path, *, copied: bool) -> None:
        url = f"{self.base}/staging/backing?path={key}"
        given = json.loads(self.pool.request("GET", url, headers=self.headers).data)["physical_address"]
        place = Path(urlsplit(given).path)
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.md5(usedforsecurity=False)
        if copied:
            with file.open("rb") as source, place.open("wb") as target:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    target.write(piece)
        else:
            os.link(file, place)
        told = {
            "staging": {"physical_address": f"local://{self.name}/{str(place).split(f'/{self.name}/', 1)[1]}"},
            "checksum": digest.hexdigest(),
            "size_bytes": file.stat().st_size,
        }
        headers = {**self.headers, "Content-Type": "application/json"}
        answer = self.pool.request("PUT", url, body=json.dumps(told), headers=headers)
        assert answer.status == 200, answer.data


class Figures:
    """Seconds and CPU seconds of the ways, round by round."""

    def __init__(self, ways: Mapping[str, Put], server_pid: int) -> None:
        self.ways, self._pid = ways, server_pid
        self.seconds: dict[str, list[float]] = {name: [] for name in ways}
        self.cpu = dict.fromkeys(ways, 0.0)

    def round(self, turn: int, files: list[Path], pool: ThreadPoolExecutor) -> None:
        for name in random.Random(turn).sample(list(self.ways), len(self.ways)):
            prefix, put = f"{name.replace(', ', '-').replace(' ', '-')}{turn}", self.ways[name]
            cpu, begun = self._cpu_s(), time.perf_counter()
            list(pool.map(lambda file, put=put, prefix=prefix: put(f"{prefix}/{file.name}", file), files))
            self.seconds[name].append(time.perf_counter() - begun)
            self.cpu[name] += self._cpu_s() - cpu

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") + sum(os.times()[:2])

    def ratio(self, name: str) -> float:
        """How many times as long as ours a way takes: the median of what it is within each round."""
        each = zip(self.seconds[name], self.seconds[OURS], self.seconds[AGAIN], strict=True)
        return statistics.median(2 * other / (first + second) for other, first, second in each)

    def cpu_ratio(self, name: str) -> float:
        return 2 * self.cpu[name] / (self.cpu[OURS] + self.cpu[AGAIN])

    def lines(self, count: int, size: int) -> Iterator[str]:
        for name, seconds in self.seconds.items():
            rates = sorted(count / one for one in seconds)
            middle, each = statistics.median(rates), 1e6 * self.cpu[name] / count / len(rates)
            yield (
                f"{name}: {middle:.4g}/s ({rates[0]:.4g}-{rates[-1]:.4g}, n={len(rates)}), {middle * size / 1e6:.0f} "
                f"MB/s, {self.ratio(name):.2f} times ours; CPU {each:.0f} us each, {self.cpu_ratio(name):.2f} times"
            )


@pytest.mark.parametrize("case", CASES)
def test_objects_go_in_as_fast_as_by_hand(repo, state, folder, case, record_property) -> None:
    size, count, rounds = CASES[case]
    block = os.urandom(size)
    (folder / "files").mkdir()
    files = [folder / "files" / f"{number:05d}" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(number.to_bytes(8, "little") + block[8:])
    hand = ByHand(repo)
    ways: dict[str, Put] = {
        OURS: lambda key, file: repo.put("main", key, file),
        "rest": hand.rest,
        "s3 boto3": hand.s3_boto3,
        "s3 obstore": hand.s3_obstore,
        "link, copied": hand.linked_copy,
        BARE: hand.linked_bare,
    }
    ways[AGAIN] = ways[OURS]
    figures = Figures(ways, state.pid)
    with ThreadPoolExecutor(THREADS) as pool:
        warm_up = Figures(ways, state.pid)
        for turn in range(-1, rounds):
            (figures if turn >= 0 else warm_up).round(turn, files, pool)
            last = files[-1]
            assert repo.get("main", f"ours{turn}/{last.name}") == last.read_bytes()
            assert len(list(repo.list("main", f"ours{turn}/"))) == count
            repo.reset("main")
            for file in Path(state.folder).glob("data/bench/data/*/*"):
                file.unlink()
    print()
    for line in figures.lines(count, size):
        print(f"{case} x {count}, {THREADS} threads, {line}")
    compared = [name for name in ways if name not in (OURS, AGAIN, BARE)]
    ratio, cpu = min(map(figures.ratio, compared)), min(map(figures.cpu_ratio, compared))
    print(f"{case}: ours {ratio:.2f} of the best by hand, by CPU time {cpu:.2f}; once more {figures.ratio(AGAIN):.2f}")
    record_property(f"{case}_ratio", ratio)
    record_property(f"{case}_cpu_ratio", cpu)
    assert ratio >= 0.8
    assert cpu >= 0.8
