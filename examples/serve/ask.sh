#!/bin/sh
# One answer of a running `subvene serve` by curl: at a strength and positions of its own, with its receipt.
# sh examples/serve/ask.sh [NAME [URL]]; the server's key, if it has one: OPENAI_API_KEY.
name=${1:-cheerful}
url=${2:-http://127.0.0.1:8000/v1}
key="Authorization: Bearer ${OPENAI_API_KEY:-none}"
model=$(curl -sf "$url/models" -H "$key" | python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])')
curl -sf "$url/chat/completions" -H "$key" -H 'Content-Type: application/json' -d @- <<JSON
{"model": "$model", "messages": [{"role": "user", "content": "How was your day?"}],
 "max_tokens": 32, "temperature": 0,
 "subvene": [{"artifact": "$name", "strength": 1.5, "positions": "response"}]}
JSON
