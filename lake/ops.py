"""Appending to the tables of `ops` and `archive`: records that are added and never changed."""

from collections.abc import Collection, Mapping

from lake import tables
from lake.errors import BadInput
from lake.repository import NO_METADATA, CommitId, Metadata, Repository
from lake.rows import Rows
from lake.schemas import table_spec


def append_rows(
    repo: Repository,
    branch: str,
    rows: Mapping[str, Rows],
    *,
    message: str,
    wait_s: float = 60.0,
    metadata: Metadata = NO_METADATA,
    anew: Collection[str] = (),
) -> CommitId:
    """Append rows to tables of `ops` or `archive` in one commit, and return it.

    Parameters
    ----------
    rows : mapping of table name to rows
        Every table must belong to `branch`; all are written, or none.
    wait_s : float
        How long to wait for another writer of the branch, which is a `ConflictError` after that.
    anew : collection of table names
        Tables that are begun anew, since bytes of theirs are lost; what is left of the old ones stays in the history.

    Raises
    ------
    SchemaMismatch
        Rows that do not fit their table; nothing is written.
    """
    if not any(len(table) for table in rows.values()):
        raise BadInput(f"there are no rows to append to {branch}", fix="give at least one row")
    for name in rows:
        spec = table_spec(name)
        if spec.branch != branch:
            raise BadInput(f"table {name} belongs to {spec.branch}, not to {branch}", fix=f"append it to {spec.branch}")
    with repo.session(branch, wait_s=wait_s, resume=False) as session:
        for name in anew:
            session.delete([stat.key for stat in session.list(f"tables/{name}/")])
        if anew:
            session.checkpoint()
        for name, table in rows.items():
            if len(table):
                tables.append(session.workspace(f"tables/{name}/"), name, table)
        return session.commit(message, metadata)
