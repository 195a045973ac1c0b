"""What a collection of garbage tells, on every engine."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """How many contents, and their bytes."""

    count: int = 0
    size: int = 0

    def __add__(self, other: "Share") -> "Share":
        return Share(self.count + other.count, self.size + other.size)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection found, and removed unless it was a dry run.

    Attributes
    ----------
    dry_run : bool
        True if nothing was removed.
    commits_kept, commits_removed : int
        Commits that are needed, and those that are not.
    kept : mapping of reason to Share
        Objects and manifests, under the strongest reason for which they are needed, and their bytes.
    removed : mapping of reason to Share
        What is not needed. Views are counted whole, with the bytes of the files they show.
    freed : int
        Bytes given back to the file system: those of files whose last link goes. A link in a view or workspace that
        stays holds the bytes, and views are links themselves, so this may be less than the sum of `removed`.
    """

    dry_run: bool
    commits_kept: int
    commits_removed: int
    kept: dict[str, Share]
    removed: dict[str, Share]
    freed: int

    def to_json(self) -> dict[str, object]:
        """Give what `emlake gc --json` prints."""
        return asdict(self)
