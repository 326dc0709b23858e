"""The training loop: any number of experiments, one forward pass for rows of many, nothing that couples them.

One experiment alone takes the same path as a hundred together. Each has its own factors, optimizer state,
gradient clipping, learning rate, order of pairs and best step; in a pass they only share the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subvene.runner.data.examples import Answers, Example
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.files.progress import track
from subvene.runner.files.reporting import Log, curves
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training import checkpoints
from subvene.runner.training.curves import settings_of, values_at
from subvene.runner.training.experiments import (
    Experiment,
    Progress,
    Trained,
    TrainingError,
    check,
    check_answers,
    job_sha256,
)
from subvene.runner.training.losses import margin, pair_losses
from subvene.runner.training.memory import default_pass_tokens, full_pass_tokens, halving
from subvene.runner.training.multiplex import Edits, StackedEdits
from subvene.runner.training.passes import CACHE_BYTES, Passes, frozen
from subvene.runner.training.units import Unit, planned

# By experiment and row.
_LogP = dict[tuple[int, int], torch.Tensor]

_ORDER = 1
_BETAS, _EPS = (0.9, 0.999), 1e-8
# A margin below this, in nats, is rounding: an edit that does nothing prefers nothing.
_TIE = 1e-3


def train_edits(
    anatomy: Anatomy,
    examples: Sequence[Example],
    experiments: Sequence[Experiment],
    *,
    pad_id: int,
    folder: Path | None = None,
    edits: Edits | None = None,
    cache_bytes: int = CACHE_BYTES,
    description: str = "training",
) -> list[Trained]:
    """Train edits together; each comes out as if it had been trained alone.

    Args:
        anatomy: of the model, which is left as it is.
        examples: what the experiments' indices mean.
        experiments: the edits.
        pad_id: any token id.
        folder: where the job has a folder for its checkpoint, named by all that the job depends on, and is
            taken up if it was stopped; None: no checkpoint is kept.
        edits: what is trained in place of the edits that the experiments' shapes describe.
        cache_bytes: at most so much of the unedited lower layers' output is kept.
        description: what the progress bar says.

    Raises:
        TrainingError: an experiment has nothing to train on or two have one name, a checkpoint cannot be
            read, or a loss is not finite.
    """
    training = _Training(anatomy, examples, experiments, pad_id, folder, edits)
    with frozen(anatomy.model):
        training.prepare(cache_bytes)
        # Trainings of one run that differ in their data, or in a seed, have names of their own.
        name = f"{description} {training.identity[:8]}".strip()
        with curves(name, settings_of(experiments), done=training.step) as log:
            return training.run(description, log)


class _Training:
    def __init__(
        self,
        anatomy: Anatomy,
        examples: Sequence[Example],
        experiments: Sequence[Experiment],
        pad_id: int,
        folder: Path | None,
        edits: Edits | None,
    ) -> None:
        check(experiments, need_heads=edits is None)
        model: Any = anatomy.model
        asked = [e.spec.pass_tokens for e in experiments if e.spec.pass_tokens is not None]
        self.experiments = experiments
        self.answers = Answers.of(examples)
        check_answers(experiments, self.answers)
        self.edits: Edits = edits or StackedEdits([one.shape for one in experiments], anatomy)
        most = min(asked) if asked else default_pass_tokens(model)
        self.full = min(full_pass_tokens(model), most)
        self.passes = Passes(anatomy, self.answers, pad_id, most, self.full)
        self.parameters = [self.edits.parameters_of(e) for e in range(len(experiments))]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(parameters.values()), "weight_decay": experiment.spec.weight_decay}
                for parameters, experiment in zip(self.parameters, experiments, strict=True)
            ],
            lr=0.0,
            betas=_BETAS,
            eps=_EPS,
        )
        self.progress = [Progress() for _ in experiments]
        self.best = [_copied(parameters) for parameters in self.parameters]
        self.step = self.start = 0
        self.saved: int | None = None
        kind = "" if edits is None else type(edits).__name__
        self.identity = "" if folder is None else job_sha256(anatomy, examples, experiments, kind)
        self.folder = None if folder is None else folder / f"training-{self.identity[:24]}"

    def prepare(self, cache_bytes: int) -> None:
        """Take up what is there, and score every answer under the original model."""
        if self.folder is not None and (found := checkpoints.read(self.folder, self.identity)) is not None:
            self._restore(found)
        if not self._active():
            return
        rows, wanted = set[int](), []
        for e, experiment in enumerate(self.experiments):
            used = [i for i in (*experiment.train, *experiment.validation) for i in self._rows_of(e, i)]
            rows |= set(used)
            wanted += [self.edits.first_layer(e)] * len(used)
        refuse_beyond_context(
            self.passes.model, [self.answers.length(row) for row in sorted(rows)], "fit.data: answer"
        )
        halving(self.passes, lambda: self.passes.prepare(sorted(rows), wanted, cache_bytes))
        check_finite(self.passes.reference.cpu(), "fit.data: Σ log p of the answers")
        for e, progress in enumerate(self.progress):
            # A finished training that is taken up again prepares nothing, and must say the same.
            progress.passes = {
                "passes_begin_at_layer": self.passes.entry_for(self.edits.first_layer(e)),
                "answers_side_by_side": self.passes.side_by_side,
                "passes_note": self.passes.note,
            }

    def run(self, description: str, log: Log) -> list[Trained]:
        """Train until every experiment has done its steps or stopped; every step is told to `log`."""
        if self.step == 0:
            held_out = [e for e, one in enumerate(self.experiments) if one.validation]
            self._evaluate(held_out)
            log(values_at(self.experiments, self.progress, held_out, 0), 0)
        every = min(experiment.spec.checkpoint_every for experiment in self.experiments)
        last = max(experiment.steps for experiment in self.experiments)
        for _ in track(range(self.step, last), description):
            active = self._active()
            if not active:
                break
            self._optimize(active)
            self.step += 1
            self._evaluate([e for e in active if self.experiments[e].evaluates_after(self.step)])
            log(values_at(self.experiments, self.progress, active, self.step), self.step)
            if self.step % every == 0:
                self._save()
        if self.saved != self.step:
            self._save()
        return [self._trained(e) for e in range(len(self.experiments))]

    def _optimize(self, active: Sequence[int]) -> None:
        """One step of every active experiment."""
        batches = {e: self._batch(e) for e in active}
        pairs = [(e, i) for e, batch in batches.items() for i in batch]
        losses, margins = halving(self.passes, lambda: self._gradients(batches, pairs))
        self._check_finite(pairs, losses, "loss")
        for e in active:
            experiment, progress = self.experiments[e], self.progress[e]
            mine = [place for place, (owner, _) in enumerate(pairs) if owner == e]
            limit = experiment.spec.max_grad_norm
            norm = torch.nn.utils.clip_grad_norm_(
                self.parameters[e].values(), math.inf if limit is None else limit
            )
            self._check_finite([pairs[place] for place in mine], norm.cpu().expand(len(mine)), "gradient")
            progress.losses.append(float(losses[mine].mean()))
            if experiment.spec.objective.kind != "sft":
                progress.accuracies.append(float((margins[mine] > _TIE).double().mean()))
            progress.grad_norms.append(float(norm))
            self.optimizer.param_groups[e]["lr"] = experiment.rate(self.step)
        # Experiments that are done have no gradient, and AdamW leaves them alone.
        self.optimizer.step()

    def _gradients(
        self, batches: Mapping[int, Sequence[int]], pairs: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and margin of each pair, [pairs], whose gradient the parameters then have."""
        units: list[Unit] = []
        pairs_of: list[list[int]] = []
        for e in batches:
            own = [place for place, (owner, _) in enumerate(pairs) if owner == e]
            rows = [self._rows_of(*pairs[place]) for place in own]
            for some in self.passes.together(rows):
                units.append(self._unit(e, [row for i in some for row in rows[i]]))
                pairs_of.append([own[i] for i in some])
        losses, margins = torch.zeros(len(pairs)), torch.zeros(len(pairs))
        self.optimizer.zero_grad(set_to_none=True)
        for chosen in self._planned(units):
            log_p = self._log_probs([units[u] for u in chosen])
            total = torch.zeros((), device=self.passes.reference.device)
            for e in sorted({units[u].experiment for u in chosen}):
                which = [place for u in chosen if units[u].experiment == e for place in pairs_of[u]]
                examples = [pairs[place][1] for place in which]
                loss, delta = self._loss(e, examples, self._by_pair(e, examples, log_p))
                # The mean over the experiment's own batch: other experiments' pairs do not count.
                total = total + loss.sum() / len(batches[e])
                losses[which] = loss.detach().cpu()
                if delta is not None:
                    margins[which] = delta.detach().cpu()
            total.backward()  # type: ignore[no-untyped-call]
        return losses, margins

    @torch.no_grad()
    def _evaluate(self, chosen: Sequence[int]) -> None:
        """The validation loss of these experiments; the best factors so far are kept."""
        if not chosen:
            return
        if self.step == 0:
            log_p = self._reference(chosen)
        else:
            log_p = halving(self.passes, lambda: self._validation(chosen))
        for e in chosen:
            experiment, progress = self.experiments[e], self.progress[e]
            loss, delta = self._loss(e, experiment.validation, self._by_pair(e, experiment.validation, log_p))
            found: dict[str, float] = {"step": self.step, "loss": float(loss.cpu().double().mean())}
            if not math.isfinite(found["loss"]):
                raise TrainingError(
                    f"{experiment.name}: the validation loss is {found['loss']} after step {self.step}; "
                    f"{self._advice()}"
                )
            if delta is not None:
                found["accuracy"] = float((delta > _TIE).cpu().double().mean())
            if progress.look(found, experiment.spec.patience):
                self.best[e] = _copied(self.parameters[e])

    def _reference(self, chosen: Sequence[int]) -> _LogP:
        """What a look finds before the first step: an untrained edit changes nothing."""
        return {(e, row): self.passes.reference[row] for e in chosen for row in self._held_out(e)}

    def _validation(self, chosen: Sequence[int]) -> _LogP:
        units = []
        for e in chosen:
            rows = self._held_out(e)
            for some in self.passes.together([(row,) for row in rows]):
                units.append(self._unit(e, [rows[i] for i in some]))
        found: _LogP = {}
        for which in self._planned(units):
            found |= self._log_probs([units[u] for u in which])
        return found

    def _active(self) -> list[int]:
        return [e for e, one in enumerate(self.experiments) if self.progress[e].is_active(one)]

    def _batch(self, e: int) -> list[int]:
        """The examples of an experiment's next step."""
        experiment = self.experiments[e]
        epoch, step = divmod(self.step, experiment.steps_per_epoch)
        order = np.random.default_rng([experiment.seed, _ORDER, epoch]).permutation(len(experiment.train))
        first = step * experiment.spec.batch_size
        return [experiment.train[i] for i in order[first : first + experiment.spec.batch_size]]

    def _rows_of(self, e: int, example: int) -> tuple[int, ...]:
        """The answers of an example that an experiment's loss reads."""
        if self.experiments[e].spec.objective.kind == "sft":
            return (self.answers.chosen[example],)
        return self.answers.chosen[example], self.answers.rejected[example]

    def _held_out(self, e: int) -> list[int]:
        """The rows that an experiment's validation reads."""
        return sorted({row for i in self.experiments[e].validation for row in self._rows_of(e, i)})

    def _unit(self, e: int, rows: Sequence[int]) -> Unit:
        """Answers of one prompt, each once."""
        once = tuple(dict.fromkeys(rows))
        return Unit(e, once, self.passes.extent(once, self.passes.entry_for(self.edits.first_layer(e))))

    def _planned(self, units: Sequence[Unit]) -> Iterator[list[int]]:
        return planned(
            [unit.extent for unit in units], self.passes.pass_tokens, min(self.full, self.passes.pass_tokens)
        )

    def _log_probs(self, units: Sequence[Unit]) -> _LogP:
        """The log-probability of each row, under the edit of its experiment, in one pass."""
        owners = [unit.experiment for unit in units for _ in range(unit.extent.sequences)]
        with self.edits.acting(owners):
            flat = self.passes.log_probs(
                [unit.rows for unit in units], min(unit.extent.entry for unit in units)
            )
        names = [(unit.experiment, row) for unit in units for row in unit.rows]
        return dict(zip(names, flat.unbind(), strict=True))

    def _by_pair(self, e: int, examples: Sequence[int], log_p: _LogP) -> torch.Tensor:
        """Log-probabilities [examples, rows]."""
        return torch.stack([torch.stack([log_p[e, row] for row in self._rows_of(e, i)]) for i in examples])

    def _loss(
        self, e: int, examples: Sequence[int], log_p: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss and the margin Δ of each example, from its rows' log-probabilities [examples, rows]."""
        objective = self.experiments[e].spec.objective
        rows = [list(self._rows_of(e, i)) for i in examples]
        base = self.passes.reference[torch.tensor(rows)]
        if objective.reduction == "mean":
            counts = [[len(self.answers.rows[row][1]) for row in pair] for pair in rows]
            lengths = log_p.new_tensor(counts)
            log_p, base = log_p / lengths, base / lengths
        delta = None
        if objective.kind != "sft":
            delta = margin(log_p[:, 0], log_p[:, 1], base[:, 0], base[:, 1])
        return pair_losses(objective, log_p[:, 0], delta), delta

    def _check_finite(self, pairs: Sequence[tuple[int, int]], values: torch.Tensor, what: str) -> None:
        bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
        if not bad:
            return
        e, first = pairs[bad[0]]
        batch = [example for owner, example in pairs if owner == e]
        raise TrainingError(
            f"{self.experiments[e].name}: the {what} is {float(values[bad[0]])} at step {self.step + 1} of "
            f"{self.experiments[e].steps}, in the batch of examples {batch} (first at example {first}); "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        kept = "no checkpoint was kept" if self.folder is None else "there is no checkpoint yet"
        if self.saved is not None:
            kept = f"the last good checkpoint is {self.folder}, after step {self.saved}"
        return f"{kept}. Lower the learning rate, or use dtype: float32"

    def _save(self) -> None:
        if self.folder is None:
            return
        tensors = {
            f"{e}.{which}.{name}": tensor
            for e in range(len(self.experiments))
            for which, values in (("now", self.parameters[e]), ("best", self.best[e]))
            for name, tensor in values.items()
        }
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        progress = [one.record() for one in self.progress]
        checkpoints.write(self.folder, self.identity, checkpoints.Checkpoint(self.step, progress, tensors))
        self.saved = self.step

    @torch.no_grad()
    def _restore(self, found: checkpoints.Checkpoint) -> None:
        self.step = self.start = self.saved = found.step
        self.progress = [Progress(**one) for one in found.progress]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for full, tensor in found.tensors.items():
            first, second, name = full.split(".", 2)
            if first == "optimizer":
                state.setdefault(int(second), {})[name] = tensor
            elif second == "now":
                self.parameters[int(first)][name].copy_(tensor)
            else:
                self.best[int(first)][name] = tensor.to(self.parameters[int(first)][name].device)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def _trained(self, e: int) -> Trained:
        experiment, progress = self.experiments[e], self.progress[e]
        values: Any = self.best[e] if experiment.validation else self.parameters[e]
        if bad := [name for name, tensor in values.items() if not torch.isfinite(tensor).all()]:
            raise TrainingError(
                f"{experiment.name}: {', '.join(bad)} is not finite after step {self.step}; {self._advice()}"
            )
        return Trained(
            name=experiment.name,
            factors=self.edits.factors_of(e, values),
            losses=tuple(progress.losses),
            accuracies=tuple(progress.accuracies),
            grad_norms=tuple(progress.grad_norms),
            evaluations=tuple(progress.evaluations),
            best_step=progress.best_step if experiment.validation else len(progress.losses),
            stopped_early=progress.stopped_early,
            start=self.start,
            about={
                "optimizer": {
                    "asked": experiment.spec.optimizer,
                    "used": "torch.optim.AdamW, float32 states, not paged",
                    "betas": list(_BETAS),
                    "eps": _EPS,
                    "weight_decay": experiment.spec.weight_decay,
                },
                "trained_together": len(self.experiments),
                **progress.passes,
            },
        )


def _copied(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
