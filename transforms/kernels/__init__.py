"""Pure functions, arrays in, arrays out; no kernel opens a file."""
