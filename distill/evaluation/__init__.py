"""Measuring text: sampling, judging, figures, reports."""
