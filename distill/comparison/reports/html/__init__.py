"""A comparison as a page that people look at."""
