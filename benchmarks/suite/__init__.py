"""The benchmark of `python -m benchmarks`: pairs of models, each timed in one configuration a cell.

A pair is a line of `pairs.json`, a suite a file in `suites/`. `cells` expands a suite into cells,
`checks` says what this machine cannot run, `models` makes what is timed, `measure` and
`attribution` measure it, `records` reads and writes the file of a run, `report`, `plots` and
`answer` show what is in it, and `run` is the command line.
"""
