"""What all tests and the processes they start have in common."""

import atexit
import os
import shutil
import tempfile

# tokens of the tests' corpora; removed by the process that made the folder, not by one that was forked from it
if "FEWSTEP_CACHE" not in os.environ:
    cache, maker = tempfile.mkdtemp(prefix="fewstep-cache-"), os.getpid()
    os.environ["FEWSTEP_CACHE"] = cache
    atexit.register(lambda: os.getpid() == maker and shutil.rmtree(cache, ignore_errors=True))
