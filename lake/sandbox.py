"""What a user's SQL may do: one SELECT over tables and views of the snapshot. Decided before DuckDB runs anything.

Three locks, one behind the other:

1. the statement's type: a single SELECT (also WITH, FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW), or EXPLAIN of one;
2. its syntax tree: every table is one of the snapshot's, and every table function is on a short list. So neither a file
   read, `delta_scan` (which opens a foreign Delta log in spite of lock 3), nor a function that does something
   (`enable_logging` can write a file, and breaks the whole connection) is ever reached;
3. DuckDB's own settings (`lake.query`): no external access but to the snapshot's folders, no change of settings.

What cannot be understood is refused.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import duckdb

from lake.errors import BadInput, QueryRefused, TableNotFound, nearest

# Pure, or about the catalog. Reading functions (read_parquet, glob, delta_scan, query, ...) are left out on purpose.
_TABLE_FUNCTIONS = frozenset(
    {"range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree", "string_split"}
    | {"duckdb_columns", "duckdb_tables", "duckdb_views", "duckdb_types", "duckdb_keywords", "pragma_table_info"}
)
_WORD = re.compile(r"\w+")
_CATALOG_SCHEMAS = frozenset({"information_schema", "pg_catalog"})
_HINT = "only one SELECT over the tables and views of the snapshot is allowed"


def check(connection: duckdb.DuckDBPyConnection, sql: str, known: Collection[str], absent: Mapping[str, str]) -> None:
    """Let `sql` pass, or raise.

    Parameters
    ----------
    known : collection of str
        Relations that exist, as `schema.name`, lower case.
    absent : mapping of str to str
        Relations that could exist, with the reason why they do not.

    Raises
    ------
    QueryRefused
        It would write, read a file, attach, load, change a setting, or is more than one statement.
    TableNotFound
        It names a relation that is not there; the nearest name, or the reason, is in the `fix`.
    BadInput
        It is not SQL; the parser's message is passed on.
    """
    nodes, names = _parsed(connection, sql)
    for node in nodes:
        if node.get("type") == "TABLE_FUNCTION":
            _check_function(str(node["function"].get("function_name", "")))
        elif node.get("type") == "BASE_TABLE":
            _check_table(node, names, known, absent)


def relations_of(connection: duckdb.DuckDBPyConnection, sql: str) -> set[str]:
    """Name the relations that a SELECT reads, as `schema.name`."""
    nodes, names = _parsed(connection, sql)
    tables = [node for node in nodes if node.get("type") == "BASE_TABLE"]
    found = [(str(node.get("schema_name") or ""), str(node["table_name"])) for node in tables]
    return {f"{schema or 'main'}.{table}" for schema, table in found if schema or table.lower() not in names}


def _parsed(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[list[dict[str, Any]], set[str]]:
    """Give all nodes of the syntax tree, and the names that WITH clauses define."""
    statement = _only_select(connection, sql)
    row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [statement]).fetchone()
    try:
        tree = json.loads(row[0]) if row else {"error": True, "error_message": "nothing to run"}
    except RecursionError:
        raise QueryRefused("this statement is nested too deeply", fix="write it in steps, by WITH") from None
    if tree["error"]:
        raise QueryRefused(f"this statement is refused: {tree['error_message']}", fix=_HINT)
    nodes = list(_nodes(tree))
    return nodes, {name.lower() for node in nodes for name in _with_names(node)}


def _only_select(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Give the SELECT that `sql` consists of, or that it explains."""
    statement, kind = _one_statement(connection, sql)
    if kind == "EXPLAIN":
        # EXPLAIN ANALYZE runs what it explains, a COPY as well: what is explained must pass by itself.
        statement, kind = _one_statement(connection, _explained(statement))
    if kind != "SELECT":
        raise QueryRefused(f"a {kind} statement is refused", fix=_HINT)
    return statement


def _one_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, str]:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise BadInput(f"SQL: {error}", fix="correct the statement") from error
    if len(statements) != 1:
        raise QueryRefused(f"{len(statements)} statements in one query are refused", fix=_HINT)
    # DuckDB turns some PRAGMA into SELECT before it tells their type.
    kind = "PRAGMA" if _words(sql)[0][1] == "PRAGMA" else statements[0].type.name
    return statements[0].query, kind


def _explained(sql: str) -> str:
    """Cut `EXPLAIN [ANALYZE]` off; the tokens have no comments among them, so none can hide a word."""
    words = _words(sql)
    index = 2 if len(words) > 1 and words[1][1] == "ANALYZE" else 1
    if index < len(words) and words[index][1] == "(":
        # Options, or a SELECT in parentheses: they look alike, and nobody needs either.
        raise QueryRefused("EXPLAIN with options is refused", fix="write EXPLAIN or EXPLAIN ANALYZE, then SELECT")
    return sql[words[index][0] :] if index < len(words) else ""


def _words(sql: str) -> list[tuple[int, str]]:
    """Give place and text of each token, words in upper case, other tokens by their first character."""
    # The tokenizer counts bytes, not characters.
    data = sql.encode()
    starts = [len(data[:start].decode()) for start, _ in duckdb.tokenize(sql)]
    return [(start, (_WORD.match(sql, start) or [sql[start : start + 1]])[0].upper()) for start in starts]


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    # A stack, not recursion: a sum of a thousand terms is a tree a thousand deep.
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _with_names(node: Mapping[str, Any]) -> Iterator[str]:
    ctes = node.get("cte_map")
    if isinstance(ctes, dict):
        for entry in ctes.get("map", ()):
            yield str(entry["key"])
    if node.get("type") == "RECURSIVE_CTE_NODE":
        yield str(node.get("cte_name", ""))


def _check_function(name: str) -> None:
    if name.lower() not in _TABLE_FUNCTIONS:
        raise QueryRefused(
            f"the table function {name} is refused",
            fix=f"{_HINT}; table functions allowed: {', '.join(sorted(_TABLE_FUNCTIONS))}",
        )


def _check_table(
    node: Mapping[str, Any], with_names: Collection[str], known: Collection[str], absent: Mapping[str, str]
) -> None:
    catalog, schema, table = (str(node.get(key) or "").lower() for key in ("catalog_name", "schema_name", "table_name"))
    if schema in _CATALOG_SCHEMAS or (not schema and not catalog and table in with_names):
        return
    if not catalog or catalog == "memory":
        full = f"{schema or 'main'}.{table}"
        if full in known:
            return
        if full in absent:
            raise TableNotFound(f"there is no {full} in this snapshot", fix=absent[full])
    written = ".".join(str(node[key]) for key in ("catalog_name", "schema_name", "table_name") if node.get(key))
    if any(sign in written for sign in "/\\:*") or table.endswith((".csv", ".parquet", ".json", ".db")):
        raise QueryRefused(f"reading the file {written!r} is refused", fix=_HINT)
    names = sorted(name.removeprefix("main.") for name in known)
    raise TableNotFound(f"there is no table or view {written!r} in this snapshot", fix=nearest(written.lower(), names))
