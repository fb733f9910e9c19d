"""Several trainings, one after another, in the processes of one launch: start-up takes longer than they do.

python -m tests.distill.many_runs FOLDER '{"name": ["key.sub=value", …], …}'
"""

import json
import sys
from pathlib import Path

from distill.config import DistillConfig, load_config
from distill.distil import distil

if __name__ == "__main__":
    for name, overrides in json.loads(sys.argv[2]).items():
        distil(load_config(DistillConfig, "configs/smoke.yaml", overrides), Path(sys.argv[1]) / name)
