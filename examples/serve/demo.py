"""Serves an artifact for a moment and asks it at several strengths at once, as `make demo` does.

python examples/serve/demo.py NAME=ARTIFACT
"""

import os
import re
import subprocess
import sys
from pathlib import Path

artifact = sys.argv[1]
name = artifact.partition("=")[0]
command = ["subvene", "serve", artifact, "--port", "0"]
print("›", *command, flush=True)
server = subprocess.Popen(
    [str(Path(sys.executable).with_name("subvene")), *command[1:]], stderr=subprocess.PIPE, text=True
)
try:
    said = []
    for line in server.stderr:
        said.append(line)
        if found := re.search(r"http://\S+/v1", line):
            break
    else:
        sys.exit(f"the server ended with {server.wait()}: {''.join(said)}")
    asked = Path(__file__).with_name("sweep.py")
    own = os.environ | {"OPENAI_BASE_URL": found[0]}
    sys.exit(subprocess.run([sys.executable, str(asked), name], env=own).returncode)
finally:
    server.terminate()
    server.wait()
