"""What all tests and the processes they start have in common."""

import os

import torch

# DeepSpeed imports torch's compiler, which nothing here uses: four seconds in every process
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else its first import says so on standard output
