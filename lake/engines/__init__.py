"""The engines: one folder each, and the only code that sees a foreign storage error."""
