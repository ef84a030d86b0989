"""Layers and blocks: how each one computes. They need torch, torchvision and `timm.layers` only."""
