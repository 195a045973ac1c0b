import pytest

from lake.wording import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 objects"), (1, "1 object"), (2, "2 objects"), (1234567, "1,234,567 objects")]
)
def test_one_thing_is_not_things(number, said):
    assert counted(number, "object") == said


def test_a_plural_that_takes_no_s_is_given():
    assert [counted(n, "branch", "branches") for n in (1, 2)] == ["1 branch", "2 branches"]
