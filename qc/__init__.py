"""Measures the data: is it good, in numbers. Imports `lake`; changes nothing it measures; writes only `tables/qc_*`."""
