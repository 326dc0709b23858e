from __future__ import annotations

import subprocess
import sys

import subvene.specs


def test_importing_the_specs_imports_no_framework() -> None:
    code = (
        "import sys, subvene.specs as s\n"
        "s.json_schema()\n"
        "heavy = {'torch', 'transformers', 'pyvene', 'numpy', 'safetensors', 'huggingface_hub'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
        "ours = [m for m in sys.modules if m.startswith('subvene.')]\n"
        "print(*(m for m in ours if not m.startswith('subvene.specs')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert done.stderr == ""


def test_every_public_name_is_there() -> None:
    assert len(set(subvene.specs.__all__)) == len(subvene.specs.__all__)
    for name in subvene.specs.__all__:
        assert hasattr(subvene.specs, name)
