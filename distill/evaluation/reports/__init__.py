"""Results as people read them: on a terminal, in Markdown, in pictures."""
