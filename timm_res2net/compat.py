"""Code that exists only for older versions of torch.

Every entry names the version from which it can go, that is, the lowest version that must be
supported before the entry is removed and its callers are simplified.
"""

import torch
from torch.torch_version import TorchVersion

SIZES_COMPARED = TorchVersion(torch.__version__) >= '2.14'
"""Whether `torch.load` refuses a tensor that claims more bytes than the file has for it.

It can go with torch 2.14, the lowest version that was seen to do so. Files are mapped into memory
with older ones, where such a tensor cannot reach beyond the file.
"""
