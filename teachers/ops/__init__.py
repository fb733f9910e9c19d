"""What is computed V wide, without tensors that are (N, V) beside those that have to be."""
