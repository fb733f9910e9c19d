"""Figures of texts beside perplexity."""
