"""How a location becomes a server and keys: as lakeFS's own tools do it, and never to the wrong host."""

import stat
from pathlib import Path

import pytest

from lake.engines.lakefs.address import resolve
from lake.errors import BadInput, InvalidName, NotAuthorized

KEY, SECRET, URL = (
    "LAKECTL_CREDENTIALS_ACCESS_KEY_ID",
    "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY",
    "LAKECTL_SERVER_ENDPOINT_URL",
)


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv(KEY, "id")
    monkeypatch.setenv(SECRET, "hush")


@pytest.mark.parametrize(
    "location",
    [
        "lakefs://host/demo",
        "lakefs://demo/main/key",
        "lakefs://:8000/demo",
        "lakefs://host:0/demo",
        "lakefs://host:99999/demo",
        "lakefs://host:8000",
        "lakefs://host:8000/",
        "lakefs://host:8000/a/b",
    ],
)
def test_a_location_of_another_form_is_refused(location):
    with pytest.raises(BadInput, match="which repository on which server") as caught:
        resolve(location)
    assert "lakefs://HOST:PORT/REPOSITORY" in caught.value.fix


@pytest.mark.parametrize("name", ["ab", "Demo", "-demo", "de_mo", "a" * 64])
def test_a_name_that_lakefs_would_answer_with_500_is_refused_here(name, keys):
    with pytest.raises(InvalidName):
        resolve(f"lakefs://localhost:8000/{name}")


def test_keys_come_from_the_environment(keys):
    address = resolve("lakefs://localhost:8000/demo")
    assert (address.access_key_id, address.secret_access_key) == ("id", "hush")
    assert address.origin == "http://localhost:8000"
    assert address.location == "lakefs://localhost:8000/demo"


def test_keys_come_from_lakectl_yaml_and_the_environment_goes_before(user, monkeypatch):
    (user / ".lakectl.yaml").write_text(
        "credentials:\n  access_key_id: file-id\n  secret_access_key: file-secret\n"
        "server:\n  endpoint_url: http://127.0.0.1:8000/api/v1\n"
    )
    address = resolve("lakefs://127.0.0.1:8000/demo")
    assert (address.access_key_id, address.secret_access_key) == ("file-id", "file-secret")
    assert ".lakectl.yaml" in address.source
    monkeypatch.setenv(KEY, "env-id")
    assert resolve("lakefs://localhost:8000/demo").access_key_id == "env-id"


def test_another_file_may_be_named(user, monkeypatch):
    other = user / "other.yaml"
    other.write_text("credentials: {access_key_id: x, secret_access_key: y}\n")
    monkeypatch.setenv("LAKECTL_CONFIG_FILE", str(other))
    assert resolve("lakefs://127.0.0.1:8000/demo").access_key_id == "x"


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list\n", "credentials: 3\n", ""])
def test_a_file_of_another_shape_gives_no_keys_or_says_what_is_wrong(user, text):
    (user / ".lakectl.yaml").write_text(text)
    with pytest.raises((BadInput, NotAuthorized)):
        resolve("lakefs://127.0.0.1:8000/demo")


def test_keys_for_one_server_are_not_sent_to_another(keys, monkeypatch):
    monkeypatch.setenv(URL, "https://lake.example.org")
    with pytest.raises(NotAuthorized, match=r"is for https://lake.example.org"):
        resolve("lakefs://127.0.0.1:8000/demo")


def test_the_endpoint_decides_between_http_and_https(keys, monkeypatch):
    monkeypatch.setenv(URL, "https://lake.example.org")
    assert resolve("lakefs://lake.example.org:443/demo").origin == "https://lake.example.org:443"
    monkeypatch.setenv(URL, "http://lake.example.org:8000/")
    assert resolve("lakefs://lake.example.org:8000/demo").origin == "http://lake.example.org:8000"


def test_keys_are_not_sent_in_the_clear_to_another_machine_unasked(keys):
    with pytest.raises(BadInput, match="http or https"):
        resolve("lakefs://lake.example.org:8000/demo")


def test_without_any_keys_the_error_says_where_they_may_be_put():
    with pytest.raises(NotAuthorized, match=r"no credentials for 127.0.0.1:8000") as caught:
        resolve("lakefs://127.0.0.1:8000/demo")
    assert "emlake server start" in caught.value.fix


def test_the_key_files_are_private_and_written_once(keys, emlake_home):
    address = resolve("lakefs://localhost:8000/demo")
    access = address.s3_access()
    path = Path(access.credentials_file)
    assert path.is_relative_to(emlake_home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "aws_secret_access_key = hush" in path.read_text()
    before = path.stat().st_ino
    assert address.s3_access() == access
    assert path.stat().st_ino == before
    assert "hush" not in repr(address) + repr(access)


def test_two_servers_have_two_profiles(keys):
    one, two = (resolve(f"lakefs://localhost:{port}/demo").s3_access() for port in (8000, 8001))
    assert one.profile != two.profile
    assert one.credentials_file != two.credentials_file
