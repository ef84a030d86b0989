"""`timm-res2net VERB` and `python -m timm_res2net VERB`."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
