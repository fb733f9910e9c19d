"""One rule a file; passes counted."""
SAMPLERS = {"ancestral": None}
