"""What a run stands on: processes, progress, its folder."""
