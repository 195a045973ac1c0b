"""Every status that lakeFS documents for any of its operations is an error of ours, by a line of the table."""

import ast
import inspect
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lakefs_sdk.api
import pytest

import lake.engines.lakefs
from lake.engines.lakefs import failures
from lake.engines.lakefs.address import resolve
from lake.engines.lakefs.wire import _READS, Wire
from lake.errors import LakeError, StorageError

# What no client of ours can meet: it asks for no redirect and sends no `If-None-Match` on a read.
NOT_ASKED_FOR = {302, 304}
# These say what the server cannot do; the text of the answer tells the rest.
JUST_SHOWN = {500, 501}


def documented() -> dict[str, tuple[str, str, frozenset[int]]]:
    """Read (method, path, statuses) of each operation from the client that was generated from the server's API."""
    found = {}
    for api in vars(lakefs_sdk.api).values():
        if not inspect.isclass(api):
            continue
        for name, function in inspect.getmembers(api, inspect.isfunction):
            if name.endswith("_with_http_info"):
                source = inspect.getsource(function)
                types = re.search(r"_response_types_map = \{(.*?)\}", source, re.DOTALL)
                call = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source)
                assert call is not None, name
                statuses = re.findall(r"'(\d{3})':", types[1]) if types else []
                operation = name.removesuffix("_with_http_info")
                found[operation] = call[2], call[1], frozenset(map(int, statuses))
    return found


DOCUMENTED = documented()


def sources() -> list[ast.AST]:
    folder = Path(next(iter(lake.engines.lakefs.__path__)))
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py"))]


def called() -> set[str]:
    """Name the operations that the engine calls through the generated client, read from its source."""
    found = set()
    for tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (node.attr.removesuffix("_with_http_info")) in DOCUMENTED:
                found.add(node.attr.removesuffix("_with_http_info"))
    return found


#: Operations that go over the same pool without the generated client (`Wire.request`, `send`, `json`, `pages`).
BY_PATH = {
    "get_repository",
    "get_branch",
    "list_branches",
    "list_tags",
    "get_commit",
    "log_commits",
    "diff_refs",
    "diff_branch",
    "find_merge_base",
    "list_objects",
    "stat_object",
    "get_object",
    "upload_object",
    "get_physical_address",
    "link_physical_address",
}


def test_what_the_engine_calls_is_documented():
    assert len(DOCUMENTED) > 100
    assert DOCUMENTED.keys() >= BY_PATH
    assert called() >= {"merge_into_branch", "revert_branch", "commit", "create_branch", "create_tag", "list_run_hooks"}


@pytest.mark.parametrize("operation", sorted(DOCUMENTED))
def test_each_documented_status_has_a_line_in_the_table(operation):
    for status in DOCUMENTED[operation][2]:
        if status < 300 or status in NOT_ASKED_FOR:
            continue
        error = failures.from_status(status, "words", operation)
        assert isinstance(error, LakeError)
        assert status in failures._BY_STATUS or (status in JUST_SHOWN and type(error) is StorageError)
        assert error.fix
        assert failures.status_of(error) == status


@pytest.fixture
def says() -> Iterator[tuple[int, list[int]]]:
    """A port where every request is answered with the status that stands in the list."""
    status: list[int] = [200]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "20")
            self.end_headers()
            self.wfile.write(b'{"message": "words"}')

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield http.server_address[1], status
        http.shutdown()


BODIES: dict[str, Any] = {
    "branch_creation": {"name": "b", "source": "main"},
    "reset_creation": {"type": "reset"},
    "revert_creation": {"ref": "main", "parent_number": 1},
    "commit_creation": {"message": "m"},
    "path_list": {"paths": ["a"]},
    "update_object_user_metadata": {"set": {"a": "b"}},
    "repository_creation": {"name": "demo", "storage_namespace": "local://demo"},
    "tag_creation": {"id": "t", "ref": "main"},
    "branch_protection_rule": [{"pattern": "main"}],
    "object_copy_creation": {"src_path": "a"},
    "cherry_pick_creation": {"ref": "main"},
    "garbage_collection_rules": {"default_retention_days": 1, "branches": []},
    "repository_metadata_set": {"metadata": {"a": "b"}},
    "repository_metadata_keys": {"keys": ["a"]},
    "commit_record_creation": {
        "commit_id": "0" * 64,
        "version": 1,
        "committer": "c",
        "message": "m",
        "metarange_id": "1" * 64,
        "creation_date": 0,
        "parents": [],
        "generation": 1,
    },
}


def arguments(function: Any) -> list[Any]:
    """Make arguments that pass the generated client's checks: text, a number, or a body."""
    made: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not inspect.Parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
            continue
        made.append(BODIES.get(parameter.name, "x"))
    return made


@pytest.mark.parametrize("operation", sorted(called()))
def test_whatever_the_server_may_say_to_a_call_of_the_engine_comes_out_as_that_error(operation, monkeypatch, says):
    monkeypatch.setenv("LAKECTL_CREDENTIALS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr("lake.engines.lakefs.wire._PAUSES_S", (0.0,))
    port, says_now = says
    wire = Wire(resolve(f"lakefs://127.0.0.1:{port}/demo"))
    function = next(getattr(api, operation) for api in vars(wire.sdk).values() if hasattr(api, operation))
    for status in sorted({*DOCUMENTED[operation][2], *failures._BY_STATUS, *JUST_SHOWN}):
        if status < 400:
            continue
        says_now[0] = status
        with pytest.raises(LakeError) as caught:
            wire.call(function, *arguments(function), doing=operation)
        assert type(caught.value) is type(failures.from_status(status, "words", operation))
        assert failures.status_of(caught.value) == status
        unsure = status in (502, 503, 504) and not operation.startswith(_READS)
        assert str(caught.value) == f"{operation}: words" + failures.UNSURE * unsure
    wire.close()
