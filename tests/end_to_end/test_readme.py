"""The README's commands, run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[list[str]]:
    """Commands of each console block, without comments."""
    found = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    return [[line.split("  #")[0].strip() for line in block.splitlines() if line.strip()] for block in found]


def block_with(word: str) -> list[str]:
    return next(block for block in blocks() if any(word in line for line in block))


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (README.parent / "Makefile").read_text()
    for line in blocks()[0]:
        assert re.search(rf"^{line.removeprefix('make ')}:", makefile, re.MULTILINE), line


def test_every_command_of_the_readme_exists_with_its_options(emlake):
    for block in blocks():
        for line in block:
            if not line.startswith("emlake "):
                continue
            words = shlex.split(line)[1:]
            names = words[:2] if words[0] in {"release", "qc", "ingest", "params", "server"} else words[:1]
            answer = emlake(*names, "--help")
            assert answer.code == 0, line
            for option in (word for word in words if word.startswith("--")):
                assert option in answer.out, (line, option)


def test_every_query_of_the_readme_is_a_file_with_those_parameters():
    from sql import library

    rows = re.findall(r"^\| [^|]+\? \| `(\w+)`(?: \(`([^`]+)`\))? \|", README.read_text(), re.MULTILINE)
    assert len(rows) == 6
    for name, parameters in rows:
        declared = {parameter for parameter, _ in library()[name].parameters}
        assert declared == ({parameters} if parameters and not parameters.startswith("--") else set())


def test_every_path_the_readme_names_is_there():
    for path in re.findall(r"`((?:lake|transforms|qc|releases|sql)/[\w./*]+)`", README.read_text()):
        assert list(README.parent.glob(path.rstrip("/"))), path


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_tour_runs_in_the_demos_repository(demo_folder, emlake, monkeypatch):
    monkeypatch.chdir(demo_folder / "repo")
    for line in block_with("emlake log")[1:]:
        answer = emlake(*shlex.split(line)[1:])
        assert answer.code == 0, (line, answer.err)
        assert answer.out or "params list" in line, line
