"""Measurements, never imported by the package. `python -m benchmarks.throughput`."""
