"""An OpenAI-compatible server as the endpoint back end needs it: requests, replies, what is kept of them."""
