"""The one place where pyvene is imported.

pyvene prints a notice about its optional `nnsight` back end when it is imported; that notice means nothing
to our users, so it is kept off their screens here. And it imports networkx and matplotlib's pyplot to draw
causal models, for which every command that loads a model would wait: they are imported when something of them
is first asked for.
"""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_DRAWING = ("networkx", "matplotlib", "matplotlib.pyplot")


class _Later(ModuleType):
    """Stands for a module until something of it is asked for, which imports it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # Where a module is may be asked while it is not imported; of a module within another it may not.
        self.__spec__ = importlib.util.find_spec(name) if "." not in name else ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":  # which `inspect` asks of all modules that there are
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _imported_later(names: tuple[str, ...]) -> Iterator[None]:
    """Within, an `import` of one of these gives what stands for it; afterwards it gives the module itself."""
    stand_ins = {name: _Later(name) for name in names if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent in stand_ins:
            setattr(stand_ins[parent], child, stand_in)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


with contextlib.redirect_stdout(io.StringIO()), _imported_later(_DRAWING):
    import pyvene

__all__ = ["pyvene"]
