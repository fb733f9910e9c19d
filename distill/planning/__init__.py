"""What memory a distillation needs, before a weight is loaded."""
