"""One short file a command; no other room imports them."""
