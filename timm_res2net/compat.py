"""Code that exists only for older versions of timm and huggingface_hub.

Every entry names the version from which it can go, that is, the lowest version that must be
supported before the entry is removed and its callers are simplified.
"""
