"""Figures of texts beside perplexity: what a sampler that games perplexity can not hide. One kind, one file."""
