"""How a spec names the tensors that it needs, and how a file of tensors names what it holds.

A stored tensor is named in full, ``{key}.{site}[{layer}]`` with an optional ``.{part}``, so that no reader
has to guess which layer the first row stands for:

========================================  ====================================================
``sycophantic.block_output[19]``          a direction, shape ``[width]``
``….block_output[19].residual_norm``      typical norm of the activation there, ``[]`` (optional)
``iti.attention_heads[12]``               directions of every head, ``[n_heads, head_dim]``
``iti.attention_heads[12].sigma``         their standard deviations, ``[n_heads]`` (optional)
``iti.attention_heads[12].probe_weight``  their linear probes, ``[n_heads, head_dim]`` (optional)
``iti.attention_heads[12].probe_bias``    the probes' intercepts, ``[n_heads]`` (with the former)
``edit.attention_heads[12].a``            reading factors, ``[rank, n_heads*head_dim]``
``edit.attention_heads[12].b``            writing factors, ``[rank, n_heads*head_dim]``
========================================  ====================================================

The one exception is the state of a ``pyvene`` intervention, named ``{key}.{parameter}`` after pyvene's own
parameters, since its component may be no site of ours. Of a trained cell the key itself has the place:
``das.block_output[16].verb.rotation``, orthonormal columns, ``[width, rank]``.
"""

import re
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import full_match, path_ending
from subvene.specs._flaws import Expect
from subvene.specs.sites import SITES, Site

_KEY = r"[A-Za-z0-9_\-.\[\]]+"
_PART = r"[A-Za-z0-9_]+"
_KEY_PATTERN = re.compile(_KEY)
_PART_PATTERN = re.compile(_PART)
_NAME_PATTERN = re.compile(
    rf"(?P<key>{_KEY})\.(?P<site>{'|'.join(SITES)})\[(?P<layer>0|[1-9][0-9]*)\](?:\.(?P<part>{_PART}))?"
)


TensorPath = Annotated[str, path_ending(".safetensors"), Expect("a path that ends in .safetensors")]
TensorKey = Annotated[str, full_match(_KEY), Expect("a key of letters, digits and any of _ - . [ ]")]


class TensorRef(SpecModel):
    """Names stored tensors: a file and the key under which they stand in it."""

    expects: ClassVar[str] = "a mapping with `key` and, unless this file fits the tensors itself, `file`"

    file: TensorPath | None = Field(
        default=None,
        description="A .safetensors file, relative to the folder of this spec. Left out: the tensors that "
        "this spec's own `fit:` gives, or those stored in the artifact beside it.",
    )
    key: TensorKey = Field(
        description="The first part of the stored names: `{key}.{site}[{layer}]`, such as "
        "`sycophantic.block_output[19]`."
    )


class TensorName(NamedTuple):
    """The parts of a stored tensor's name."""

    key: str
    site: Site
    layer: int
    part: str | None


def tensor_name(key: str, site: Site, layer: int, part: str | None = None) -> str:
    """Returns the full name under which a tensor is stored.

    Args:
        key: What the tensor is, such as ``sycophantic``.
        site: The site that it belongs to.
        layer: The 0-based index of the decoder block.
        part: Which of several tensors of this place: ``sigma``, ``probe_weight``, ``a``, ``b``, ….

    Raises:
        ValueError: A part of the name is not valid, so that it could not be read back.
    """
    if not _KEY_PATTERN.fullmatch(key):
        raise ValueError(f"a tensor key consists of letters, digits and any of _ - . [ ], not {key!r}")
    if site not in SITES:
        raise ValueError(f"a site is one of {', '.join(SITES)}, not {site!r}")
    if layer < 0:
        raise ValueError(f"a layer is the 0-based index of a decoder block, not {layer}")
    if part is not None and not _PART_PATTERN.fullmatch(part):
        raise ValueError(f"a part of a tensor's name consists of letters, digits and _, not {part!r}")
    return f"{key}.{site}[{layer}]" + ("" if part is None else f".{part}")


def is_cell_key(key: str) -> bool:
    """Returns whether a key names a place and a part of it, ``das.block_output[16].verb``."""
    parsed = parse_tensor_name(key)
    return parsed is not None and parsed.part is not None


def parse_tensor_name(name: str) -> TensorName | None:
    """Returns the parts of a stored tensor's name, None if it does not follow the scheme."""
    match = _NAME_PATTERN.fullmatch(name)
    if match is None:
        return None
    site = next(site for site in SITES if site == match["site"])
    return TensorName(match["key"], site, int(match["layer"]), match["part"])
