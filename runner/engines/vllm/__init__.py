"""The same artifacts inside vLLM: a plugin, no fork. Only this folder imports vLLM, where it runs.

`plugin` is what vLLM loads in each of its processes. It puts `front` before its scheduler (admission and
receipts), `worker` before its model's forward (who is edited where in this step), `sites` into its model (the
edits themselves) and keys into its prefix cache. `settings` say what an engine holds; `versions`, with which
vLLM.
"""
