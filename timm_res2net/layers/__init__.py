"""How one layer or one block computes: torch and `timm.layers` only."""
