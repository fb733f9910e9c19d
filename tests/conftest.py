"""What all tests and the processes they start have in common."""

import os

# DeepSpeed imports torch's compiler, which nothing here uses: four seconds in every process
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
