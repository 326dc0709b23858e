"""Lines of specs for the tiny model, which follow its `model:`."""

STEER = """\
interventions:
- kind: steering
  name: glad
  layer: 1
  vector: {file: t.safetensors, key: v}
  coefficient: 3
  positions: response
"""
EXPERIMENT = """\
fit:
  recipe: mean_difference
  key: glad
  pairs:
    texts:
    - {prompt: how are you, positive: i am very happy, negative: i am very gloomy}
    - {prompt: tell me about the day, positive: the sun is good, negative: the rain is bad}
interventions:
- kind: steering
  name: glad
  layer: 1
  vector: {key: glad}
  coefficient: 2
  positions: response
evaluate:
- kind: samples
  coefficients: [-2, 0, 2]
  prompts: [hello world, tell me about the train]
  max_new_tokens: 6
- kind: contrast
  coefficients: [-2, 0, 2]
  pairs:
    texts:
    - {prompt: how is the day, positive: happy and good, negative: gloomy and bad}
    - {prompt: hello, positive: i am glad, negative: i am sad}
"""
