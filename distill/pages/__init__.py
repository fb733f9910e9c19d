"""Pages that people look at: one HTML file each, which needs no other; what is on one is the caller's."""
