"""Text into rows of tokens."""
