"""Distilling one teacher in several ways, and measuring all alike."""
