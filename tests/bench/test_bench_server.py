"""Bytes into a lakeFS server on loopback: ours against the best of what one writes by hand, in turn.

By hand: bare REST (urllib3), the S3 gateway (boto3, obstore), and linking in place (ask for an address in the local
store, copy the file there, link it). Linking without the copy is shown, not compared: the object would change with the
file it came from.
"""

import hashlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

import lake

boto3 = pytest.importorskip("boto3")
obstore = pytest.importorskip("obstore")
pytestmark = [pytest.mark.bench, pytest.mark.lakefs]

THREADS = 16
#: Bytes, objects, rounds: the larger ones scatter more, the disk being part of it.
CASES = {"4KiB": (4 << 10, 1200, 7), "1MiB": (1 << 20, 64, 15), "64MiB": (64 << 20, 2, 11)}
Put = Callable[[str, Path], object]


@pytest.fixture
def repo(lakefs_location) -> Iterator[lake.repository.Repository]:
    made = lake.create(lakefs_location)
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


def in_threads(put: Put, prefix: str, files: list[Path]) -> float:
    begun = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda file: put(f"{prefix}/{file.name}", file), files))
    return time.perf_counter() - begun


@pytest.mark.parametrize("case", CASES)
def test_objects_go_in_as_fast_as_by_hand(repo, tmp_path, case, record_property) -> None:
    size, count, rounds = CASES[case]
    block = os.urandom(size)
    files = [tmp_path / f"{number:05d}" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(number.to_bytes(8, "little") + block[8:])
    hand = ByHand(repo)
    ways: dict[str, Put] = {
        "ours": lambda key, file: repo.put("main", key, file),
        "rest": hand.rest,
        "s3 boto3": hand.s3_boto3,
        "s3 obstore": hand.s3_obstore,
        "link, copied": hand.linked_copy,
        "link, bare": hand.linked_bare,
    }
    for name, put in ways.items():
        put(f"warm/{name.replace(', ', '-').replace(' ', '-')}", files[0])
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        # Another order each time, and none pays for what the one before left in the page cache.
        for name in random.Random(turn).sample(list(ways), len(ways)):
            prefix = name.replace(", ", "-").replace(" ", "-")
            os.sync()
            took[name].append(in_threads(ways[name], f"{prefix}{turn}", files))
        last = files[-1]
        assert repo.get("main", f"ours{turn}/{last.name}") == last.read_bytes()
        assert len(list(repo.list("main", f"ours{turn}/"))) == count
        repo.reset("main")
    print()
    for name, seconds in took.items():
        rates = sorted(count / one for one in seconds)
        middle = statistics.median(rates)
        spread = f"{middle:.4g}/s ({rates[0]:.4g}-{rates[-1]:.4g}, n={rounds}), {middle * size / 1e6:.0f} MB/s"
        print(f"{case} x {count}, {THREADS} threads, {name}: {spread}")
        record_property(f"{case} {name}", middle)
    best = min(statistics.median(took[name]) for name in ways if name not in ("ours", "link, bare"))
    ratio = best / statistics.median(took["ours"])
    print(f"{case}: ours {ratio:.2f} of the best by hand")
    record_property(f"{case}_ratio", ratio)
    assert ratio >= 0.8
