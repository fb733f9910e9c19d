"""The front door: commands, configuration, the loop and its engines, data, evaluation, reports."""
