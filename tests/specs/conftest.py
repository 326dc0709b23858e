"""Shared by the tests of ``subvene.specs``: a valid file to spoil, and what is then said about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from subvene.specs import Problem, SpecError, evaluations, parse_spec, recipes

# A file imports only the kinds that it has: tests that look at every model are to find them all.
EVERY = [*evaluations.REGISTRY.values(), *recipes.REGISTRY.values()]
HEAD = "subvene: 1\nmodel: {name: a/b}\ninterventions:\n"


@pytest.fixture
def problems_of() -> Callable[..., tuple[Problem, ...]]:
    def problems_of(text: str, **options: object) -> tuple[Problem, ...]:
        with pytest.raises(SpecError) as caught:
            parse_spec(text, **options)  # type: ignore[arg-type]
        return caught.value.problems

    return problems_of


@pytest.fixture
def spoilt(problems_of: Callable[..., tuple[Problem, ...]]) -> Callable[..., tuple[Problem, ...]]:
    """Problems of a file whose interventions are the given lines, which begin in line 4."""

    def spoilt(*lines: str, **options: object) -> tuple[Problem, ...]:
        return problems_of(HEAD + "\n".join(lines) + "\n", **options)

    return spoilt
