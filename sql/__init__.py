"""SQL as files: `views/`, `queries/`, `checks/`. One statement a file, under a checked header."""
