"""Imported by the first cell of every lesson: sees to it that what the lesson needs is installed.

In the environment that requirements-lessons.txt makes, nothing happens. In Colab, which has its own PyTorch, only the
small packages that are missing are installed; the pinned versions are left alone.
"""

import subprocess
import sys
from importlib.util import find_spec

NEEDED = ("torch", "numpy", "tiktoken", "regex", "safetensors", "matplotlib", "tqdm", "pytest")

lacking = [name for name in NEEDED if find_spec(name) is None]
if lacking:
    print(f"installing {', '.join(lacking)} ...")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *lacking], check=True)
