"""The models that importing this package registers with timm."""
