"""The one place where pyvene is imported.

pyvene prints a notice about its optional `nnsight` back end when it is imported; that notice means nothing
to our users, so it is kept off their screens here.
"""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):
    import pyvene

__all__ = ["pyvene"]
