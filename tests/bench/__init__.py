"""Benchmarks, not tests: `python -m tests.bench` prints one table of ratios against a floor.

One module per question. A module that has `QUESTION`, `ROWS` and `measure` is found by itself:

- `QUESTION`: its name on the command line.
- `ROWS`: what the targets call it, for the table.
- `measure(settings)`: returns `Figure`s, its contenders interleaved, so that a busy moment of the
  machine hits all of them.
"""
