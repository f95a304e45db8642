"""The passes import as slmopt.passes only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_bare_name_is_refused() -> None:
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", "import passes"], cwd=root, capture_output=True, text=True)
    assert found.returncode == 1
    assert "import the passes as slmopt.passes, not as passes" in found.stderr


def test_proper_name_imports_nothing_heavy() -> None:
    names = "slmopt.passes.raise_.raising, slmopt.passes.canonicalize.canonicalize, slmopt.rewrite"
    program = f"import sys, {names}; print(sorted({{'torch', 'tvm', 'transformers', 'numpy'}} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
