"""The few-step generator: made from a teacher, rolled out, sampled, compressed, exported."""
