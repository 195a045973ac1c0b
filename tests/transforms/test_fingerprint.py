"""Fingerprints: equal if and only if the result must be, and able to say what differs."""

import textwrap
from itertools import count

import pytest

from lake.errors import BadInput
from transforms import sources
from transforms.fingerprint import InputRef, basis, changed, fingerprint, kernel_digest, numerics
from transforms.pipeline import ResolvedStage
from transforms.stage import Grid, Scene
from transforms.testing.stages import Cut, Paint, Smooth

COUNT = count()
SCENE = Scene(Grid(), {})
ONE, TWO = InputRef("block", "a/0", "1" * 64, "run1"), InputRef("tile", "raw/x", "2" * 64)


def base_of(stage, digest="d" * 64):
    return basis(ResolvedStage(stage, "id", digest, None), SCENE)


def test_the_order_of_inputs_and_who_made_them_do_not_count():
    base = base_of(Cut())
    again = InputRef("block", "a/0", "1" * 64, "run2")
    assert fingerprint(base, "b", [ONE, TWO]).key == fingerprint(base, "b", [TWO, again]).key


@pytest.mark.parametrize(
    ("one", "other", "part"),
    [
        ((Cut(), "b", [ONE]), (Smooth(), "b", [ONE]), "stage"),
        ((Cut(), "b", [ONE]), (Cut(), "c", [ONE]), "box"),
        ((Cut(), "b", [ONE]), (Cut(), "b", [TWO]), "inputs"),
        ((Cut(), "b", [ONE]), (Cut(), "b", [ONE, TWO]), "inputs"),
    ],
)
def test_every_part_counts_and_is_named(one, other, part):
    first = fingerprint(base_of(one[0]), *one[1:])
    second = fingerprint(base_of(other[0]), *other[1:])
    assert first.key != second.key
    assert part in changed(first.parts, second.parts, {}, base_of(other[0]))


def test_a_changed_parameter_is_told_with_both_values():
    old, new = base_of(Paint(seed=1), "1" * 64), base_of(Paint(seed=2), "2" * 64)
    told = changed(fingerprint(old, "", []).parts, fingerprint(new, "", []).parts, old.params, new)
    assert told == "params: seed 1 -> 2"
    assert changed(fingerprint(old, "", []).parts, fingerprint(new, "", []).parts, {}, new) == "params"


def test_numerics_name_the_libraries_and_refuse_one_that_is_not_there():
    told = numerics(Cut())
    assert "numpy" in told["libraries"]
    assert told["threads"] == 1

    class Odd(Cut):
        libraries = ("no-such-distribution",)

    with pytest.raises(BadInput, match="no-such-distribution"):
        numerics(Odd())


# -- sources ----------------------------------------------------------------------------------------------------------
MODULES = {
    "stage": """
        from kern import helper
        from elsewhere import other
        LIMIT = 3
        class Mine:
            \"\"\"What it is.\"\"\"
            def run(self):
                from late import lazy
                return helper(LIMIT) + lazy()
        class Another:
            def run(self):
                return 1
    """,
    "kern": """
        from deep import bottom
        def helper(x):
            return bottom(x)
        def unrelated():
            return 0
    """,
    "deep": "def bottom(x):\n    return x\n",
    "late": "def lazy():\n    return 2\n",
    "elsewhere": "def other():\n    return 5\n",
}


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Digest class Mine of a small package whose files can be edited."""
    toy = f"toypackage{next(COUNT)}"  # find_spec remembers where a package of one name was
    package = tmp_path / toy
    package.mkdir()
    (package / "__init__.py").touch()
    for name, text in MODULES.items():
        for other in MODULES:
            text = text.replace(f"from {other} import", f"from {toy}.{other} import")
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "_OURS", (f"{toy}.",))

    def of(name="", old="", new=""):
        if name:
            path = package / f"{name}.py"
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))
        for cached in (sources._parsed, sources._tree, sources._is_module):
            cached.cache_clear()
        return sources.digest_of(sources.closure(f"{toy}.stage", "Mine"))

    yield of
    for cached in (sources._parsed, sources._tree, sources._is_module):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stage", "LIMIT = 3", "LIMIT = 4"),
        ("stage", "helper(LIMIT) +", "helper(LIMIT) -"),
        ("kern", "return bottom(x)", "return bottom(x) + 1"),
        ("deep", "return x", "return -x"),
        ("late", "return 2", "return 3"),
    ],
)
def test_a_change_of_what_the_stage_reaches_counts(digest, name, old, new):
    assert digest() != digest(name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stage", "What it is.", "What it was."),
        ("stage", "return 1", "return 7"),
        ("kern", "return 0", "return 9"),
        ("kern", "def helper(x):", "def helper(x):  # a remark"),
        ("elsewhere", "return 5", "return 6"),
    ],
)
def test_remarks_and_code_that_it_does_not_reach_do_not_count(digest, name, old, new):
    assert digest() == digest(name, old, new)


def test_the_whole_source_of_a_real_stage_is_found():
    from transforms.stages import stage_class

    kind = stage_class("em")
    modules = {module for module, _ in sources.closure(kind.__module__, kind.__name__)}
    assert {"transforms.kernels.render", "transforms.kernels.geometry", "transforms.stages.imaging"} <= modules
    assert not any(module.startswith("transforms.stage.") or module == "transforms.stage" for module in modules)
    assert len(kernel_digest(kind)) == 64


def test_a_kernel_module_that_does_not_exist_is_named():
    class Lost(Cut):
        kernels = ("transforms.kernels.nowhere",)

    with pytest.raises(BadInput, match=r"transforms\.kernels\.nowhere"):
        kernel_digest(Lost)
