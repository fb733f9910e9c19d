"""The ground floor: frozen denoisers of every family, the noise process, and the bundled models."""
