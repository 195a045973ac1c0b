"""What a check of stored bytes finds, and what an engine must tell so that they can be checked.

An engine's bytes fall into two kinds. The *structure* is what leads to the contents: refs, commits, manifests. It is
small, it is read anyway to learn what there is, and it is checked whole each time. The *contents* are the objects'
bytes; they are many, and are checked in the order of `lake.scrub`, some in each run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lake.names import unit_of
from lake.repository import Commit, CommitId, ObjectStat, Progress

RESTORE = "restore it from a copy of the repository"
RESTORE_MANIFEST = f"{RESTORE}: `emlake scrub --heal-from LOCATION` takes it from a folder"
ACCEPT = "if no copy holds it: `emlake scrub --accept-loss OBJECT --reason ...`"
#: Kinds of faults of contents, which are named by the content; all others are of the structure, or follow from these.
CONTENTS = frozenset({"object", "copy", "staged"})
Offer = bytes | Path  # bytes, or a file that holds them


class CannotHeal(Exception):
    """A damaged thing cannot be healed, whatever is offered; the text says why. Never leaves `lake.heal`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One damaged thing, and who is hit by it.

    Attributes
    ----------
    kind : str
        object | copy | staged | manifest | commit | refs | repository | table | volume
    name : str
        Digest of the content, else what identifies it: address, commit, file.
    what : str
        What is wrong, with the path.
    fix : str
        What to do.
    keys : tuple of str
        Keys under which commits hold it, sorted.
    commits : int
        How many commits hold it; `first` and `last` are the oldest and the newest of them.
    refs, releases, units : tuple of str
        Branches and tags whose head holds it; releases; tables, volumes and other merge units.
    causes : tuple of str
        Of a table or volume: names, any of which may be that of the content that cannot be read, if that is the fault.
    """

    kind: str
    name: str
    what: str
    fix: str
    keys: tuple[str, ...] = ()
    commits: int = 0
    first: CommitId | None = None
    last: CommitId | None = None
    refs: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()

    def held_by(self, commits: Sequence[Commit], keys: Sequence[str], refs: Sequence[str]) -> "Fault":
        """Give the fault with its holders: `commits` in the order of their making."""
        return replace(
            self,
            keys=tuple(sorted({*self.keys, *keys})),
            commits=len(commits),
            first=commits[0].id if commits else None,
            last=commits[-1].id if commits else None,
            refs=tuple(sorted(refs)),
            releases=tuple(sorted({c.metadata["release"] for c in commits if "release" in c.metadata})),
            units=tuple(sorted({unit for key in (*self.keys, *keys) if (unit := unit_of(key)) is not None})),
        )

    @property
    def tables(self) -> tuple[str, ...]:
        """The Delta tables among the units."""
        return tuple(unit.split("/")[1] for unit in self.units if unit.startswith("tables/"))

    def to_json(self) -> dict[str, object]:
        """Give it as one JSON object."""
        return {
            "kind": self.kind,
            "object": self.name,
            "what": self.what,
            "fix": self.fix,
            "keys": list(self.keys),
            "commits": self.commits,
            "first_commit": self.first,
            "last_commit": self.last,
            "refs": list(self.refs),
            "releases": list(self.releases),
            "tables": list(self.tables),
            "units": list(self.units),
        }


def names_of(stat: ObjectStat) -> tuple[str, ...]:
    """Give what an inspector may call the content of an object: engines name it by its digest, or by its address."""
    return stat.checksum, stat.address


@dataclass(frozen=True, slots=True)
class Part:
    """What was checked of one kind of thing."""

    kind: str
    items: int
    bytes: int
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """All contents there are, one element each.

    Attributes
    ----------
    slots : (n,) uint64
        A place in the space of 64-bit numbers that depends on the content's name alone, evenly spread. A run checks
        ranges of slots, so it can say what it checked in two numbers.
    sizes : (n,) int64
        Bytes.
    births : (n,) int64
        The commit that first held it, as a number that grows with time; 0 for what no commit holds, -1 for what is
        staged and is checked in each run.
    until : int
        Above every birth; whatever is committed later gets this or more.
    """

    slots: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    births: NDArray[np.int64]
    until: int

    def __len__(self) -> int:
        return len(self.slots)


class Inspector(Protocol):
    """Checks the bytes of one repository. Made for one run: it sees the commits there are when `structure` is called.

    `structure` comes first, then `inventory`. `check` may be called from many threads.
    """

    @property
    def place(self) -> str:
        """Identify these very bytes: a copy of the repository is another place, and was not checked by checking this.

        Stays the same while the repository stays where it is.
        """
        ...

    def structure(self, progress: Progress) -> Sequence[Part]:
        """Check what leads to the contents, whole."""
        ...

    def inventory(self) -> Inventory:
        """Tell which contents there are."""
        ...

    def name(self, which: int) -> str:
        """Name a content of the inventory."""
        ...

    def check(self, which: int) -> Sequence[Fault]:
        """Read a content, and every copy of it that is kept apart, and compare."""
        ...

    def attribute(self, faults: Sequence[Fault]) -> Sequence[Fault]:
        """Add to each fault the commits, keys, refs and releases that it hits, in the same order.

        A thing that was removed meanwhile, with all that held it, is left out.
        """
        ...

    def heal(self, fault: Fault, offers: Iterable[Offer]) -> bool:
        """Put the first of `offers` that has the recorded digest in the place of what is damaged; False if none has.

        When it returns True that survives a power cut. What is whole meanwhile is left as it is. Raises `CannotHeal`
        for what no offer could mend.
        """
        ...

    def learned(self) -> Sequence[dict[str, Any]]:
        """Give digests that were seen for the first time, as rows of `scrub_digests`; empty where names are digests."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A repository that lies somewhere and can be inspected."""

    def inspector(self) -> Inspector:
        """Begin an inspection."""
        ...


@runtime_checkable
class ContentAddressed(Protocol):
    """A repository that finds what it keeps by its sha256."""

    def content(self, kind: str, name: str) -> Offer | None:
        """Give what is kept of this kind (of `Fault`) under a digest, not compared with it; None if nothing is."""
        ...
