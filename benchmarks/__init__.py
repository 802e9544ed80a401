"""What the library costs, beside what it is built on: ``python -m benchmarks``."""
