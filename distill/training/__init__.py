"""The loop, its engines, and what keeps them safe."""
