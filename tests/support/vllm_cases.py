"""A small model with artifacts of every kind that is served, and what the runner under transformers says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_model import WORDS, write_tiny_model

from subvene.runner import IntervenedModel
from subvene.specs import InterventionSpec

# Heads that two and three ranks can share; vLLM's attention on the CPU takes no narrower ones than 32.
WIDTH, HEADS, HEAD_DIM, LAYERS = 96, 6, 32, 4
TOKENS = 12
TOLERANCE = 2e-4
"""Of a log-probability, both sides in float32: they add up in another order."""
RULES: tuple[Any, ...] = (
    "all",
    "prompt",
    "response",
    "last_prompt_token",
    {"first": 3},
    {"last": 4},
    {"indices": [0, 2, -1]},
    {"first": 2, "of": "response"},
    {"indices": [1, 3], "of": "response"},
)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(length: int, seed: int = 0) -> list[int]:
    """A prompt of words; two of one seed begin alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, len(WORDS), (64,), generator=generator).tolist()[:length]


def ref(key: str) -> dict[str, str]:
    return {"key": key}


def kinds(width: int = WIDTH, heads: int = HEADS, head_dim: int = HEAD_DIM) -> dict[str, Any]:
    """Every kind, and every site, that columns can say."""
    steering, affine = {"kind": "steering", "vector": ref("v")}, {"kind": "affine", "map": ref("map")}
    return {
        "steering": steering | {"layer": 1, "coefficient": 1.5},
        "mlp": steering | {"layer": 0, "coefficient": 0.5, "site": "mlp_output"},
        "attention": steering | {"layer": 2, "coefficient": 0.5, "site": "attention_output"},
        "heads": {
            "kind": "head_direction",
            "directions": ref("iti"),
            "strength": 2.0,
            "heads": {0: [0, heads - 1], 2: [1]},
        },
        "adaptive": {
            "kind": "head_direction",
            "directions": ref("sure"),
            "strength": 3.0,
            "adaptive": "one_minus_p",
        },
        "low_rank": {
            "kind": "low_rank_edit",
            "layer": 1,
            "rank": 2,
            "factors": ref("edit"),
            "write_heads": [0, heads - 1],
            "strength": 0.5,
        },
        "ablation": {"kind": "ablation", "layer": 2, "direction": ref("v")},
        "capping": {"kind": "capping", "layer": 1, "direction": ref("v"), "max": 0.2, "min": -0.2},
        "scaling": {
            "kind": "scaling",
            "layer": 2,
            "site": "attention_heads",
            "heads": [1, heads - 1],
            "gain": 0.25,
        },
        "gains": {"kind": "scaling", "layer": 0, "site": "block_output", "gains": ref("gains")},
        "low_rank_map": affine | {"layer": 2, "form": "low_rank", "rank": 2},
        "diagonal_map": affine | {"layer": 1, "site": "mlp_output", "form": "diagonal"},
        "dense_map": affine | {"layer": 0, "site": "attention_output", "strength": 0.5},
    }


def tensors(width: int = WIDTH, heads: int = HEADS, head_dim: int = HEAD_DIM) -> dict[str, torch.Tensor]:
    made = {
        "iti.attention_heads[0]": draw(heads, head_dim, seed=1),
        "iti.attention_heads[0].sigma": draw(heads, seed=2).abs(),
        "iti.attention_heads[2]": draw(heads, head_dim, seed=3),
        "sure.attention_heads[1]": draw(heads, head_dim, seed=4),
        "sure.attention_heads[1].probe_weight": draw(heads, head_dim, seed=5),
        "sure.attention_heads[1].probe_bias": draw(heads, seed=6),
        "edit.attention_heads[1].a": 0.2 * draw(2, heads * head_dim, seed=7),
        "edit.attention_heads[1].b": 0.2 * draw(2, heads * head_dim, seed=8),
        "gains.block_output[0]": 1 + 0.2 * draw(width, seed=20),
        "map.block_output[2].a": 0.2 * draw(2, width, seed=21),
        "map.block_output[2].b": 0.2 * draw(2, width, seed=22),
        "map.block_output[2].bias": 0.2 * draw(width, seed=23),
        "map.mlp_output[1].weight": 1 + 0.2 * draw(width, seed=24),
        "map.mlp_output[1].bias": 0.2 * draw(width, seed=25),
        "map.attention_output[0].weight": 0.1 * draw(width, width, seed=26),
        "map.attention_output[0].bias": 0.2 * draw(width, seed=27),
    }
    written = torch.tensor([h in (0, heads - 1) for h in range(heads)]).repeat_interleave(head_dim)
    made["edit.attention_heads[1].b"] *= written
    for site, layer in (
        ("block_output", 1),
        ("block_output", 2),
        ("mlp_output", 0),
        ("attention_output", 2),
    ):
        made[f"v.{site}[{layer}]"] = draw(width, seed=10 + layer)
    return made


@dataclass(frozen=True)
class Job:
    """One request: its prompt, the artifact and what of it is changed."""

    prompt: tuple[int, ...]
    artifact: str | None = None
    strength: float | None = None
    positions: Any = None

    @property
    def asked(self) -> list[dict[str, Any]] | None:
        """As a request says it."""
        if self.artifact is None:
            return None
        said = {"artifact": self.artifact, "strength": self.strength, "positions": self.positions}
        return [{key: value for key, value in said.items() if value is not None}]


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the log-probability of each, and the receipt."""

    tokens: list[int]
    log_probs: list[float]
    receipt: list[dict[str, Any]]


class Reference:
    """A model folder, artifacts for it, and their answers under transformers.

    Args:
        folder: where model and artifacts are written.
        model: the model, in the folder `model` already; made if it is left out.
        vocabulary: of the model that is made.
    """

    def __init__(self, folder: Path, model: Any = None, vocabulary: int = len(WORDS)) -> None:
        self.folder, self.path = folder, folder / "model"
        if model is None:
            write_tiny_model(
                self.path,
                hidden_size=WIDTH,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                head_dim=HEAD_DIM,
                num_hidden_layers=LAYERS,
                max_position_embeddings=256,
                vocab_size=vocabulary,
            )
            model = transformers.AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        self.model = model.eval()
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.sizes = (config.hidden_size, config.num_attention_heads, head_dim)
        self._answers: dict[str, Answer] = {}
        self._made: dict[str, IntervenedModel] = {}

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return tensors(*self.sizes)

    @cached_property
    def plain(self) -> IntervenedModel:
        return IntervenedModel.plain(self.model, None, name=str(self.path))

    @cached_property
    def artifacts(self) -> dict[str, str]:
        """One of every kind, and all of them as one: name → folder."""
        declared = kinds(*self.sizes)
        for name, one in declared.items():
            self.save(name, [one])
        self.save("many", [one | {"name": name} for name, one in declared.items()])
        return {name: str(self.folder / name) for name in [*declared, "many"]}

    def save(self, name: str, interventions: Sequence[dict[str, Any]]) -> str:
        """Write an artifact."""
        self._made[name] = self._intervened(interventions)
        self._made[name].save_pretrained(self.folder / name)
        return str(self.folder / name)

    def _intervened(self, interventions: Sequence[Any]) -> IntervenedModel:
        spec = InterventionSpec(subvene=1, model={"name": str(self.path)}, interventions=list(interventions))
        return IntervenedModel.from_spec(spec, model=self.model, tensors=self.tensors)

    def intervened(self, job: Job) -> IntervenedModel:
        """The intervened model that does what a job asks for."""
        if job.artifact is None:
            return self.plain
        m = self._made[job.artifact]
        if job.positions is None:
            return m
        declared = [one.model_dump(mode="json", by_alias=True) for one in m.spec.interventions]
        return self._intervened([one | {"positions": job.positions} for one in declared])

    @torch.no_grad()
    def answer(self, job: Job, count: int = TOKENS) -> Answer:
        """What the runner under transformers says."""
        key = repr((job, count))
        if key not in self._answers:
            m, strengths = self.intervened(job), job.strength
            if job.artifact is None:
                strengths = None
            ids = m.generate_ids(
                torch.tensor([job.prompt]), strengths=strengths, max_new_tokens=count, do_sample=False
            )
            receipt = m.receipt.to_dict() if m.receipt and job.artifact else []
            log_probs = self.log_probs(job, ids[0].tolist(), m)
            self._answers[key] = Answer(ids[0, len(job.prompt) :].tolist(), log_probs, receipt)
        return self._answers[key]

    @torch.no_grad()
    def log_probs(self, job: Job, ids: list[int], m: IntervenedModel | None = None) -> list[float]:
        """Of the tokens after the prompt, teacher-forced."""
        m = m or self.intervened(job)
        begins = len(job.prompt)
        strengths = None if job.artifact is None else job.strength
        logits = m(torch.tensor([ids]), prompt_lengths=[begins], strengths=strengths, must_act=False).logits
        log_p = logits[0, begins - 1 : -1].double().log_softmax(-1)
        return log_p.gather(-1, torch.tensor(ids[begins:]).unsqueeze(-1)).squeeze(-1).tolist()


def mixed_jobs() -> list[Job]:
    """Every kind × every rule, two prompts, some strengths, and plain ones between."""
    long, short = tuple(prompt(37, seed=1)), tuple(prompt(7, seed=2))
    jobs = [
        Job(long, name, None, rule) for name in [*kinds(), "many"] for rule in RULES if rule != {"last": 4}
    ]
    jobs += [Job(short, name, None, {"last": 4}) for name in [*kinds(), "many"]]
    one = tuple(prompt(1, seed=3))
    jobs += [Job(one, "steering", None, rule) for rule in ("all", "prompt", "response", "last_prompt_token")]
    jobs += [Job(long, "steering", strength, "response") for strength in (-1.5, 0.0, 0.5, 4.0)]
    return [*jobs, Job(long), Job(short), Job(one)]


def few_jobs() -> list[Job]:
    """A selection of them, for engines that are slow to start."""
    long, short = tuple(prompt(37, seed=1)), tuple(prompt(7, seed=2))
    jobs = [Job(long, name, None, rule) for name in [*kinds(), "many"] for rule in ("all", "response")]
    jobs += [Job(short, "many"), Job(short, "steering", -1.5, "prompt"), Job(short, "heads", 0.0)]
    return [*jobs, Job(long), Job(short)]


def requests(
    vllm: Any, jobs: Iterable[Job], count: int = TOKENS, **options: Any
) -> tuple[list[Any], list[Any]]:
    """Prompts and sampling parameters for `LLM.generate`."""
    prompts, sampling = [], []
    for job in jobs:
        prompts.append({"prompt_token_ids": list(job.prompt)})
        extra = {"subvene": job.asked} if job.artifact else None
        given = {"temperature": 0, "max_tokens": count, "logprobs": 0, "ignore_eos": True} | options
        sampling.append(vllm.SamplingParams(**given, extra_args=extra))
    return prompts, sampling


def said(output: Any) -> tuple[list[int], list[float]]:
    """The tokens of a vLLM output's first answer, and their log-probabilities."""
    (answer, *_) = output.outputs
    pairs = zip(answer.token_ids, answer.logprobs, strict=True)
    return list(answer.token_ids), [at[token].logprob for token, at in pairs]


def check(
    reference: Reference,
    jobs: Sequence[Job],
    outputs: Sequence[Any],
    *,
    steered: int = 3,
    relative: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """Hold vLLM's outputs against the runner under transformers: tokens, log-probabilities, receipts.

    Args:
        reference: the runner.
        jobs: what was asked.
        outputs: what vLLM answered.
        steered: how many answers have to differ from those without edits, in tokens or log-probabilities;
            otherwise an engine that ignores edits would pass.
        tolerance: of a log-probability.
        relative: whether ‖Δ‖/‖h‖ is compared, which is measured at every computation of a token.
    """
    changed = 0
    for job, output in zip(jobs, outputs, strict=True):
        expected = reference.answer(job)
        tokens, log_probs = said(output)
        assert tokens == expected.tokens, job
        worst = max(abs(a - b) for a, b in zip(log_probs, expected.log_probs, strict=True))
        assert worst < tolerance, (job, worst)
        plain = reference.answer(Job(job.prompt))
        apart = (abs(a - b) for a, b in zip(plain.log_probs, expected.log_probs, strict=True))
        changed += tokens != plain.tokens or max(apart) > 10 * tolerance
        check_receipt(job, output, expected, relative=relative)
    assert changed >= steered


def check_receipt(job: Job, output: Any, expected: Answer, *, relative: bool) -> None:
    if job.artifact is None:
        assert output.subvene is None
        return
    found = output.subvene.to_dict()["receipt"]
    assert len(found) == len(expected.receipt)
    for ours, theirs in zip(found, expected.receipt, strict=True):
        if not any(theirs["strengths"]):
            assert ours["strengths"] == (0.0,)
            continue
        cached = ours["cached"]
        assert sum(ours["edited"].values()) + cached == sum(theirs["edited"].values()), job
        same = ["name", "kind", "sites", "positions", "rows", "expects_change"]
        if not cached:
            same += ["edited", "first", "last", "rows_edited"]
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}, job
        if relative and ours["mean_relative"] is not None and not cached:
            assert abs(ours["mean_relative"] - theirs["mean_relative"]) < 1e-4 * (1 + theirs["mean_relative"])
