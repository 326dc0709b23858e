"""TruthfulQA: the questions, the prompts around them, and the scores."""
