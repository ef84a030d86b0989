import os
import sys

# before torch is imported: its profiler prints a line at every start and stop
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
