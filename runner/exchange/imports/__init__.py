"""Import: what other tools made, as an ordinary artifact. One file a format; `FORMATS` lists them."""

from subvene.runner.exchange.imports.base import Imported, Options
from subvene.runner.exchange.imports.formats import FORMATS, import_foreign, recognise
from subvene.runner.exchange.imports.opened import ImportRefusedError

__all__ = ["FORMATS", "ImportRefusedError", "Imported", "Options", "import_foreign", "recognise"]
