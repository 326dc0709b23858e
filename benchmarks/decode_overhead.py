"""What an intervention costs while decoding: 32 new tokens, batch 8, on SmolLM2-135M-Instruct.

Arms: plain transformers; a bare forward hook that adds a vector; stock pyvene steering; subvene steering;
subvene with 48 heads over 16 layers; stock pyvene with the same 48 heads as 48 keys. Ratios are arm/plain.
"""

from __future__ import annotations

import torch
from harness import EMBEDDED, arguments, interleaved, report

from subvene.interventions import HeadDirectionIntervention, SteeringIntervention
from subvene.interventions._pyvene import pyvene
from subvene.runner import IntervenedModel, load_model
from subvene.runner.data.text import pad, pad_id_of, prompt_ids
from subvene.specs import HeadDirectionSpec, InterventionSpec, ModelSpec, SteeringSpec, TensorRef, tensor_name

LAYER, LAYERS, HEADS_PER_LAYER, NEW_TOKENS = 18, range(6, 22), 3, 32
PROMPTS = [
    "What do you think about the weather?",
    "Give me three tips for a long train ride.",
    "Why is the sky blue?",
    "Tell me about your day.",
    "How do I cook rice without burning it?",
    "What is a good name for a cat?",
    "Explain gravity to a child.",
    "Should I learn to play the violin?",
]


def spec(*interventions: object) -> InterventionSpec:
    return InterventionSpec(subvene=1, model=ModelSpec(name=EMBEDDED), interventions=interventions)


def main() -> None:
    options = arguments(__doc__)
    model, tokenizer = load_model(EMBEDDED)
    rows = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    batch = pad(rows, [len(row) for row in rows], pad_id_of(tokenizer), "left")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    generation = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(576, generator=generator)
    tensors = {tensor_name("v", "block_output", LAYER): vector}
    heads = {layer: torch.randperm(9, generator=generator)[:HEADS_PER_LAYER].tolist() for layer in LAYERS}
    for layer in LAYERS:
        tensors[tensor_name("iti", "attention_heads", layer)] = torch.randn(9, 64, generator=generator) / 8

    steering = IntervenedModel.from_spec(
        spec(SteeringSpec(layer=LAYER, vector=TensorRef(key="v"), coefficient=1.0, positions="response")),
        model=model,
        tokenizer=tokenizer,
        tensors=tensors,
    )
    iti = IntervenedModel.from_spec(
        spec(
            HeadDirectionSpec(
                directions=TensorRef(key="iti"), strength=1.0, heads=heads, positions="response"
            )
        ),
        model=model,
        tokenizer=tokenizer,
        tensors=tensors,
    )

    def stock(config: list[dict[str, object]]) -> pyvene.IntervenableModel:
        return pyvene.IntervenableModel(config, model)

    stock_steering = stock(
        [{"component": f"model.layers[{LAYER}].output", "intervention": SteeringIntervention(vector)}]
    )
    per_head = []
    for layer, chosen in heads.items():
        for head in chosen:
            directions = torch.zeros(9, 64)
            directions[head] = tensors[tensor_name("iti", "attention_heads", layer)][head]
            component = f"model.layers[{layer}].self_attn.o_proj.input"
            per_head.append({"component": component, "intervention": HeadDirectionIntervention(directions)})
    stock_heads = stock(per_head)

    def bare_hook() -> None:
        handle = model.model.layers[LAYER].register_forward_hook(lambda module, args, output: output + vector)
        model.generate(**inputs, **generation)
        handle.remove()

    def pyvene_generate(intervenable: pyvene.IntervenableModel) -> None:
        intervenable.generate(inputs, unit_locations=None, intervene_on_prompt=True, **generation)

    arms = {
        "plain transformers": lambda: model.generate(**inputs, **generation),
        "bare forward hook": bare_hook,
        "stock pyvene, steering": lambda: pyvene_generate(stock_steering),
        "subvene, steering": lambda: steering.generate_ids(**inputs, **generation),
        "subvene, 48 heads in 16 layers": lambda: iti.generate_ids(**inputs, **generation),
        "stock pyvene, 48 keys for 48 heads": lambda: pyvene_generate(stock_heads),
    }
    rounds = options.rounds or (1 if options.quick else 8)
    seconds = interleaved(arms, "plain transformers", rounds)
    report("decode_overhead", seconds, "plain transformers")


if __name__ == "__main__":
    main()
