"""`subvene power`: what so many draws and questions can find, before anything is run."""

from __future__ import annotations

from typing import Annotated

import typer

from subvene.runner.cli._console import out, results
from subvene.runner.cli._options import Json

_Draws = Annotated[list[int], typer.Option("--draws", min=1, help="Random draws; may be given again.")]
_Questions = Annotated[list[int], typer.Option("--questions", min=2, help="Questions; may be given again.")]


def power(
    draws: _Draws = [9, 19, 39, 99],  # noqa: B006
    questions: _Questions = [80, 163, 408, 817],  # noqa: B006
    sd: Annotated[
        float,
        typer.Option(
            help="Standard deviation of the questions' paired differences; of yes or no, at most 1, and the "
            "root of the share of questions on which two conditions differ where the difference is small."
        ),
    ] = 0.5,
    alpha: Annotated[float, typer.Option(help="Level of the test.")] = 0.05,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of the table: the level is divided by so many (Bonferroni).")
    ] = 1,
    at: Annotated[float, typer.Option("--power", help="Chance to find the difference.")] = 0.8,
    as_json: Json = False,
) -> None:
    """Say the smallest p of a rank among draws, and the difference that so many questions show.

    Of a rank: 1/(draws + 1), whatever the effect. Of a paired difference over questions: the two-sided
    t-test's, at this level and power.
    """
    if sd <= 0 or not 0 < alpha / rows < at < 1:
        raise typer.BadParameter("expected --sd above 0 and 0 < --alpha < --power < 1")
    with results(as_json) as emit:
        from subvene.runner.files.power import Power

        found = Power.of(draws, questions, sd=sd, alpha=alpha / rows, power=at)
        if as_json:
            emit(
                {
                    "draws": [{"draws": n, "smallest_p": p} for n, p in found.draws.items()],
                    "questions": [
                        {"questions": n, "detectable_difference": d} for n, d in found.questions.items()
                    ],
                    "sd": sd,
                    "alpha": alpha / rows,
                    "power": at,
                }
            )
            return
    console = out()
    for line in found.lines():
        console.print(line, markup=False)
