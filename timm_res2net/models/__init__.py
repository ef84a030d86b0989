"""Models that `import timm_res2net` registers with timm."""
