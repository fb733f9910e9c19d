"""A comparison as people read it: on a terminal, in Markdown, in pictures."""
