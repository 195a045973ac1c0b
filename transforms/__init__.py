"""How files become the archive and one array is made from another. Imports `lake` only.

Ingest, stages, planner, runner, executors, models and their training, synthetic EM with known truth.
"""
