import pickle
import re

import pytest

from lake import errors
from lake.errors import ConflictError, LakeError, nearest

LEAVES_AND_BRANCHES = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LakeError)),
    key=lambda kind: kind.__name__,
)


def _drawn():
    """Read the tree in the module's docstring: class name -> (depth, kind, exit code or None)."""
    rows = {}
    for line in errors.__doc__.splitlines():
        match = re.match(
            r"    (?P<indent>(?:\|  |   )*)(?:[|`]- )?(?P<name>[A-Z]\w+)\s+(?P<kind>[a-z-]+)\s*(?P<code>\d)?", line
        )
        if match and "- " in line:
            depth = len(match["indent"]) // 3 + 1
            rows[match["name"]] = (depth, match["kind"], int(match["code"]) if match["code"] else None)
    return rows


def test_the_drawing_and_the_classes_are_the_same():
    drawn = _drawn()
    assert set(drawn) == {kind.__name__ for kind in LEAVES_AND_BRANCHES} - {"LakeError"}
    for kind in LEAVES_AND_BRANCHES:
        if kind is LakeError:
            continue
        depth, name, code = drawn[kind.__name__]
        assert name == kind.kind
        assert depth == len([base for base in kind.__mro__ if issubclass(base, LakeError)]) - 1
        if code is not None:
            assert code == kind.exit_code
        else:
            assert kind.exit_code == kind.__mro__[1].exit_code, "a leaf exits as its group does"


def test_every_kind_is_its_own():
    kinds = [kind.kind for kind in LEAVES_AND_BRANCHES]
    assert len(kinds) == len(set(kinds))


def test_groups_have_the_exit_codes_that_the_command_line_promises():
    codes = {kind.exit_code for kind in LEAVES_AND_BRANCHES}
    assert codes == {1, 2, 3, 4, 5, 6, 7}
    assert LakeError.exit_code == 1


def test_no_error_of_ours_is_a_builtin_error_too():
    # `except ValueError` somewhere far away must not swallow a refused release.
    for kind in LEAVES_AND_BRANCHES:
        builtin = {base for base in kind.__mro__ if base.__module__ == "builtins"}
        assert builtin == {Exception, BaseException, object}


@pytest.mark.parametrize("kind", LEAVES_AND_BRANCHES)
def test_an_error_crosses_a_process_boundary_whole(kind):
    error = kind("what happened", fix="what to do")
    if isinstance(error, ConflictError):
        error = kind("what happened", fix="what to do", units=["tables/t/"], keys=["a", "b"])
    error.extra = 7
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.message, again.fix, again.extra) == ("what happened", "what happened", "what to do", 7)
    assert again.to_json() == error.to_json()
    if isinstance(again, ConflictError):
        assert (again.units, again.keys) == (("tables/t/",), ("a", "b"))


def test_the_json_shape_is_one_for_all():
    for kind in LEAVES_AND_BRANCHES:
        shape = kind("m", fix="f").to_json()
        assert {"error": kind.kind, "message": "m", "fix": "f"}.items() <= shape.items()
        assert set(shape) - {"error", "message", "fix"} <= {"units", "keys", "needed", "free"}


def test_the_nearest_name_is_asked_for_and_without_one_all_are_listed():
    assert nearest("synapse", ["synapses", "edges"]) == "did you mean 'synapses'?"
    assert nearest("zzz", ["synapses", "edges"]) == "known: edges, synapses"
    assert nearest("zzz", []) == "there are none yet"
