"""The embedded engine: lakeFS's data model in a folder, in this process. See `engine.Engine` for what lies where."""

from lake.engines.embedded.repository import EmbeddedRepository

__all__ = ["EmbeddedRepository"]
