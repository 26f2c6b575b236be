"""Benchmarks, not tests: `python -m tests.bench --peers` prints tables of ratios against a floor and the best peer.

One module per question. A module that has `QUESTION`, `ROWS` and `measure` is found by itself:

- `QUESTION`: its name on the command line.
- `ROWS`: what the targets call it, for the table.
- `measure(settings)`: returns `Figure`s, its contenders interleaved, so that a busy moment of the
  machine hits all of them.
- `IS_APART`, where it is there: the question is only asked by its name, as it takes a page or many minutes.

`stopwatch` is the server, which is no part of the product; `contenders` starts those that are measured, each in
a process of its own, and `drivers` has the clients in them.
"""
