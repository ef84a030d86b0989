"""`timm-res2net COMMAND` and `python -m timm_res2net COMMAND`."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
