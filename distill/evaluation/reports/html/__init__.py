"""An evaluation, a run and its training as a page that people look at."""
