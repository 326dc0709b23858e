"""Small experiments of every kind on a tiny model, and the judge that they ask."""

from __future__ import annotations

import http.server
import json
import math
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from tiny_model import write_tiny_model
from tiny_questions import PRIMER, QUESTIONS, TEXTS, write_questions

JUDGE = "{{kind: openai, base_url: '{url}/v1', form: completions, model: judge, timeout: 10}}"
PLAIN = """\
fit:
  recipe: mean_difference
  key: glad
  pairs:
    texts:
    - {prompt: how are you, positive: i am very happy, negative: i am very gloomy}
    - {prompt: tell me about the day, positive: the sun is good, negative: the rain is bad}
interventions:
- {kind: steering, name: glad, layer: 1, vector: {key: glad}, coefficient: 2, positions: response}
evaluate:
- {kind: samples, coefficients: [-2, 0, 2], prompts: [hello world], max_new_tokens: 6}
"""
COMPARISON = """\
fit: {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: top_k, k: 3},
  ranking_folds: 2, validation: 0.34}
interventions:
- {kind: head_direction, name: iti, directions: {key: t}, strength: 3, positions: response}
conditions:
- {name: baseline, interventions: []}
- {name: best, sweep: {iti.strength: [1, 5]}, choose: {by: mc2}}
- {name: baked, like: best, set: {iti.positions: all}, bake: true}
folds: 2
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, max_new_tokens: 5,
   judge: JUDGE}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
"""
LOCALIZATION = """\
fit:
  recipe: localized_edit
  key: e
  data: {truthfulqa: {file: questions.csv}}
  heads: {rule: probed, k: 2, validation: 0.34}
  objective: {kind: ipo, tau: 0.5}
  validation: 0.34
  epochs: 3
  learning_rate: 0.05
interventions:
- {kind: low_rank_edit, name: edit, factors: {key: e}, positions: all}
evaluate:
- {kind: localization, random: 2, single: 2, tau: [0.5, 1], iti: {strengths: [1, 5]}, test: 0.34,
   learning_rate_single: 0.05, learning_rate_all: 0.05, resamples: 100}
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, max_new_tokens: 5,
   judge: {kind: reference}}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
"""
PERSONA = """\
fit:
  recipe: persona
  traits: [{name: early, file: early.json}]
  sampling: {max_new_tokens: 6, rollouts: 2}
  judge: JUDGE
  keep: {positive: 0, negative: 100, coherence: 0}
interventions:
- {kind: steering, name: s, layer: 1, vector: {key: early}, coefficient: 0.5, unit: residual_norm,
   positions: response}
evaluate:
- {kind: trait_sweep, sampling: {max_new_tokens: 6, rollouts: 1}, layers: [0, 2], coefficients: [-1, 0, 1],
   questions: 2, contrasts: 2, choose: {by: score, coherence: 0}}
- kind: trait_conditions
  sampling: {max_new_tokens: 6, rollouts: 1}
  conditions: [{kind: baseline}, {kind: prompted}, {kind: steered}, {kind: capped, percentile: 30}]
  cost: {texts: 2, max_tokens: 16, choices: 3}
"""
TRACING = """\
evaluate:
- kind: causal_tracing
  facts: {file: facts.jsonl}
  corruption: {kind: noise, draws: 2}
  sites: [{site: block_output}, {site: mlp_output, window: 2}]
  metrics: [probability, logit_difference]
  known: false
  floor: 4
  resamples: 200
- {kind: causal_tracing, facts: {file: facts.jsonl}, corruption: {kind: swap}, layers: [0, 2], known: false,
   sites: [{site: attention_output}], floor: 2, resamples: 200}
- {kind: patching, facts: {file: facts.jsonl}, metric: logit_difference, resamples: 200,
   sites: [{site: block_output}, {site: attention_heads, heads: all, positions: all}]}
- {kind: patching, facts: {file: facts.jsonl}, metric: log_probability, directions: [denoising],
   sites: [{site: mlp_output}, {site: attention_heads, heads: [0, 3]}], attribution: {sample: 6},
   resamples: 200}
"""
FACTS = (
    {
        "prompt": "the sun and rain is very",
        "subject": "sun and rain",
        "answer": "good",
        "foil": "bad",
        "swap": "train and day",
    },
    {"prompt": "how are you about the day", "subject": "you", "answer": "happy", "foil": "sad", "swap": "it"},
    {"prompt": "the train is", "subject": "train", "answer": "not", "foil": "very", "swap": "day"},
)
MIXED = """\
fit:
- recipe: mean_difference
  key: glad
  pairs:
    texts:
    - {prompt: how are you, positive: i am very happy, negative: i am very gloomy}
    - {prompt: tell me about the day, positive: the sun is good, negative: the rain is bad}
- {recipe: random_direction, key: chance, like: glad}
- {recipe: persona, traits: [{name: early, file: early.json}], sampling: {max_new_tokens: 4},
   judge: JUDGE, keep: {positive: 0, negative: 100, coherence: 0}}
- {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: top_k, k: 3},
  ranking_folds: 2, validation: 0.34}
interventions:
- {kind: steering, name: mean, layer: 1, vector: {key: glad}, coefficient: 2, positions: response}
- {kind: steering, name: chance, layer: 1, vector: {key: chance}, coefficient: 2, positions: response}
- {kind: steering, name: persona, layer: 1, vector: {key: early}, coefficient: 0.5, unit: residual_norm,
   positions: response}
- {kind: capping, name: cap, layer: 1, direction: {key: early}, min: 5, positions: response}
- {kind: head_direction, name: iti, directions: {key: t}, strength: 3, positions: response}
conditions:
- {name: untouched, interventions: []}
- {name: prompt, interventions: [], system: you are very glad}
- {name: mean, interventions: [mean]}
- {name: chance, interventions: [chance]}
- {name: persona, interventions: [persona], sweep: {persona.layer: [0, 2]},
   choose: {by: early_score, at_least: {early_coherence: 0}}}
- {name: cap, interventions: [cap]}
- {name: iti, interventions: [iti], sweep: {iti.strength: [1, 5]}, choose: {by: mc2}}
- {name: baked, interventions: [mean], set: {mean.positions: all}, bake: true}
seeds: [1, 2]
folds: 2
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, max_new_tokens: 4,
   judge: {kind: reference}}
- {kind: trait_scores, traits: [{name: early, file: early.json}], validation: 1, judge: JUDGE,
   sampling: {max_new_tokens: 4, rollouts: 2}, projection: {vector: {key: glad}, layer: 1}}
- kind: contrast
  pairs:
    texts:
    - {prompt: are you glad, positive: very happy, negative: very gloomy}
    - {prompt: how is it, positive: good sun, negative: bad rain}
    - {prompt: hello, positive: good day, negative: not a good day}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
- {kind: multiple_choice, limit: 3}
- {kind: samples, prompts: [hello], max_new_tokens: 3}
"""
INTERCHANGE = """\
sources: {other: {column: source, chat: false}}
fit:
- {recipe: das, key: das, data: {file: swaps.jsonl}, split: {by: [group]}, layers: [0, 2], known: false,
   learning_rate: 0.05, positions: {word: {base: {field: word}, source: {field: other}}, last: {last: 1}}}
- {recipe: das, key: mask, class: BoundlessRotatedSpaceIntervention, data: {file: swaps.jsonl},
   split: {by: [group]}, layers: [1], known: false, positions: {last: {last: 1}}}
interventions:
- {kind: pyvene, name: das, class: LowRankRotatedSpaceIntervention, low_rank_dimension: 1, site: block_output,
   layer: 0, positions: {field: word}, source: {from: other, positions: {field: other}},
   state: {key: "das.block_output[0].word"}}
evaluate:
- {kind: interchange, key: das, random: 2, resamples: 200}
- {kind: interchange, key: mask, among: vocabulary, random: 2, resamples: 200}
"""
SWAPS = tuple(
    {
        "base": f"the {word} is",
        "source": f"the {other} is",
        "label": "good" if other in ("sun", "day") else "bad",
        "base_label": "good" if word in ("sun", "day") else "bad",
        "word": word,
        "other": other,
        "group": "first" if {word, other} & {"sun", "rain"} else "second",
    }
    for word, other in (("sun", "rain"), ("rain", "sun"), ("day", "train"), ("train", "day"))
)
KINDS = {
    "plain": PLAIN,
    "comparison": COMPARISON,
    "persona": PERSONA,
    "localization": LOCALIZATION,
    "tracing": TRACING,
    "mixed": MIXED,
    "interchange": INTERCHANGE,
}
CHOSEN = (
    PLAIN[: PLAIN.index("evaluate:")]
    + """\
conditions:
- {name: untouched, interventions: []}
- {name: best, sweep: {glad.coefficient: [1, 2]}, choose: {by: contrast}}
- {name: everywhere, like: best, set: {glad.positions: all}}
seeds: [1, 2]
evaluate:
- kind: contrast
  pairs:
    texts:
    - {prompt: are you glad, positive: very happy, negative: very gloomy}
    - {prompt: how is it, positive: good sun, negative: bad rain}
  validation: 1
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
"""
)
"""A comparison whose conditions depend on one another: a point is chosen, and another starts from it."""
TRAIT = {
    "instruction": [{"pos": "good happy", "neg": "bad sad"}, {"pos": "glad sun", "neg": "not rain bad"}],
    "questions": ["how are you", "tell me about rain", "hello"],
    "eval_prompt": "How early? {question} {answer} 0-100",
    "evaluation_questions": ["are you glad", "tell me", "the train", "about day and sun"],
    "contrasts": [
        {"question": "are you sad", "pos": "very good day", "neg": "not happy"},
        {"question": "tell me", "pos": "glad sun .", "neg": "gloomy rain it is"},
    ],
}


def write_experiments(folder: Path, url: str, kinds: list[str]) -> dict[str, Path]:
    """Write the model, the data and an experiment file for each kind.

    Args:
        folder: where they go.
        url: of the judge.
        kinds: of `KINDS`, or `chosen`.

    Returns:
        The experiment file of each kind.
    """
    model = write_tiny_model(folder / "model")
    (folder / "primer.txt").write_text(PRIMER)
    (folder / "texts.txt").write_text(TEXTS)
    (folder / "early.json").write_text(json.dumps(TRAIT))
    (folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    (folder / "swaps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SWAPS))
    write_questions(folder / "questions.csv", QUESTIONS)
    paths = {kind: folder / f"{kind}.yaml" for kind in kinds}
    for kind, path in paths.items():
        lines = (KINDS | {"chosen": CHOSEN})[kind].replace("JUDGE", JUDGE.format(url=url))
        path.write_text(f"subvene: 1\nmodel: {{name: {model}, dtype: float32}}\n{lines}")
    return paths


class Scripted(http.server.BaseHTTPRequestHandler):
    """A judge whose replies are made of the prompt's hash: the same however often, in whatever order."""

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "judge", "object": "model"}]})

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        p = (int(sha256(prompt.encode()).hexdigest(), 16) % 997 + 1) / 999
        words = (" 71", " 12") if "0-100" in prompt or "0 to 100" in prompt else (" yes", " no")
        top = {words[0]: math.log(p), words[1]: math.log(1 - p)}
        choice = {"index": 0, "text": words[p < 0.5], "logprobs": {"top_logprobs": [top]}}
        usage = {"prompt_tokens": 10, "completion_tokens": 1}
        self._send({"id": "x", "object": "text_completion", "choices": [choice], "usage": usage})

    def _send(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):  # who asked was killed
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""
