"""Questions with answers: how many a model answers rightly, against the passes that it takes."""
