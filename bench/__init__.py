"""Benchmarks: each prints a figure, the floor measured in the same run, and the ratio. See README.md."""
