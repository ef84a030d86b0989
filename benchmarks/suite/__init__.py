"""The benchmark of `python -m benchmarks`: pairs of models, each timed in one configuration a cell.

A pair is a line of `pairs.json`, a suite a file in `suites/`. `cells` expands a suite into cells
and refuses those that this machine cannot run, `models` makes what is timed, `measure` times it and
explains the times, `answer` reads result files and says what a row means, `report` and `plots` show
all rows, and `run` is the command line.
"""
