"""Measure what the library costs, compared with what it is built on: ``python -m benchmarks``."""
