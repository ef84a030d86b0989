"""Run `python -m benchmarks`."""

import os
import sys

# must be set before torch is imported; otherwise its profiler prints a line at start and stop
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

from .suite.run import main

if __name__ == '__main__':
    sys.exit(main())
