"""The time that the import adds."""

from benchmarks import import_time
from benchmarks.script import load


def test_bootstrap_interval_of_the_median():
    low, high = import_time.interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert 1.0 <= low <= 1.2 <= high <= 1.4
    assert import_time.interval([2.0] * 5) == (2.0, 2.0)


def test_importing_adds_less_than_five_percent():
    report = load('import_time')
    assert report['interval_95_in_one_process'][1] < 1.05


def test_the_sentence():
    report = {'ratio_in_one_process': 1.0154, 'seconds_added': 0.0561}
    assert import_time.sentence(report) == (
        'Importing this package adds 1.5 % (56 ms) to the time of `import timm`.'
    )
