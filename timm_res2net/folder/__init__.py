"""A model, what is known of it, and its files."""
