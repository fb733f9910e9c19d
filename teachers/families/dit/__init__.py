"""Families whose network is the diffusion transformer of MDLM, SEDD and their descendants."""
