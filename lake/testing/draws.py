"""What a random history is made of: names, keys, values and options, few enough to meet again and again."""

from hypothesis import strategies as st

BRANCHES = ("main", "one", "two", "three")
TAGS = ("r1", "r2")
KEYS = ("a", "a/", "a/b", "a//b", "tables/t/0", "tables/t/1", "tables/u/0", "volumes/v/x", "z", "é")
FILES = ("tables/t/0", "tables/t/1", "tables/u/0", "volumes/v/x", "volumes/v/deep/y")  # a folder can hold them
# Equal bytes under several keys are where content-addressed engines go wrong.
VALUES = (b"", b"1", b"2")

branches = st.sampled_from(BRANCHES[:3] * 3 + BRANCHES[3:])  # the last one seldom exists
keys = st.sampled_from(KEYS)
values = st.sampled_from(VALUES)
files = st.sampled_from(FILES)
edits = st.dictionaries(keys, st.one_of(st.none(), values), min_size=1, max_size=4)
merge_options = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from([None, None, "source-wins", "dest-wins"]),
        "squash": st.booleans(),
        "allow_empty": st.booleans(),
        "contested": st.sampled_from([(), (), ("tables/t",), ("tables/", "volumes/v/")]),
    }
)
paths: st.SearchStrategy[dict[str, list[str]]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "objects": st.lists(keys, max_size=2, unique=True),
            "prefixes": st.lists(st.sampled_from(["a", "a/", "tables/", "volumes/v/"]), max_size=2, unique=True),
        }
    ),
)
suffixes = st.sampled_from(["", "", "", "@", "~1", "~2", "^1", "^2", "^2~1", "~0"])
