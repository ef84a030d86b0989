"""Run `python -m benchmarks`."""

import os
import signal
import sys

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while torch is imported

# must be set before torch is imported; otherwise its profiler prints a line at start and stop
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

from .suite.cli import main

if __name__ == '__main__':
    sys.exit(main())
