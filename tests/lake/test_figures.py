"""The table that benchmarks print."""

import pytest

from lake.testing.figures import Figures


def test_a_table_gives_what_the_work_gave_and_compares_with_the_first_way_that_does_it(capsys) -> None:
    figures, kept = Figures("work", "ours", "theirs", "by hand"), {}
    for row, ways in (("all", ("ours", "theirs", "by hand")), ("links", ("theirs", "by hand"))):
        assert [figures.timed(way, row, lambda way=way: way) for way in ways] == list(ways)
    assert figures.ratio("theirs", "links") == 1
    assert figures.ratio("by hand", "links") == figures.median("by hand", "links") / figures.median("theirs", "links")
    with pytest.raises(KeyError):
        figures.median("ours", "links")
    figures.show(kept.__setitem__)
    header, names, *rows = capsys.readouterr().out.strip().splitlines()
    assert header.startswith("work: ms")
    assert names.split()[:2] == ["ours", "theirs"]
    assert [line.split()[0] for line in rows] == ["all", "links"]
    assert rows[1].split()[1] == "-"
    assert kept["work, links, ours"] == "-"
    assert len(kept) == 6
