"""The benchmark of `python -m benchmarks`: pairs of models, each timed in one configuration a cell.

A pair is a line of `pairs.json`, a suite a file in `suites/`. `cells` expands a suite into cells,
`checks` says what this machine cannot run, `models` and `steps` make what is timed, `measure` times
it, `results` reads and writes the file of a run, `report` and `plots` show what is in it.
"""
