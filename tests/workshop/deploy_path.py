"""Makes the modules of deploy/jupyterhub importable: ``import deploy_path`` before them."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HUB = ROOT / "deploy/jupyterhub"
if str(HUB) not in sys.path:
    sys.path.insert(0, str(HUB))
