"""Benchmarks against named peers, run as python -m benchmarks.NAME."""
