"""Copies of what edits a model: in this process they are made as usual, into a file only as an artifact."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self

from subvene.specs import SubveneError


class PickledError(SubveneError, TypeError):
    """Something that edits a model was to be pickled."""


class NotPickled:
    """A class whose objects can be copied and not pickled.

    They belong to a process: their receipts to its threads, their hooks to the modules of a model in its
    memory. A pickle would also hold the whole language model, and run code where it is opened.
    """

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PickledError(
            f"{type(self).__name__} cannot be pickled (torch.save, multiprocessing). Write the interventions "
            "with m.save_pretrained(folder), and read them with IntervenedModel.from_pretrained(folder), in "
            "another process too; copy.deepcopy copies it within this one"
        )
