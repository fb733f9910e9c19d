"""What is minimised: one paper, one file; pure functions of tensors, then a little wiring."""
