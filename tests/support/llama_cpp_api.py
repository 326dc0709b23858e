"""llama.cpp itself, by ctypes: the shared object inside xllamacpp exports its C API and its file readers.

Only what the tests need: load a GGUF, decode some tokens, read the logits of all of them, and set a control
vector that llama.cpp's own loader read from a file. Everything is computed in float32 on the CPU where the
GGUF is F32 (no flash attention, F32 cache), so that its logits can be compared with those of transformers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gguf
import numpy as np
import torch

INT = ctypes.POINTER(ctypes.c_int32)
LOAD_FILE = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class Parameters(ctypes.Structure):
    """Either struct of parameters, larger than it is: it is returned and passed in memory, by its start."""

    _fields_ = [("words", ctypes.c_int32 * 256)]


# Words of llama_context_params, each with the default by which it is recognised (an F16 cache is type 1).
THREADS, BATCH_THREADS, FLASH, CACHE_K, CACHE_V = 7, 8, 13, 26, 27
DEFAULTS = {0: 512, THREADS: 4, BATCH_THREADS: 4, FLASH: -1, CACHE_K: 1, CACHE_V: 1}
FLOAT32 = 0


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", INT),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", INT),
        ("n_seq_id", INT),
        ("seq_id", ctypes.POINTER(INT)),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class Vector(ctypes.Structure):
    """std::vector, as libstdc++ lays it out."""

    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("capacity", ctypes.c_void_p)]


class LoadInfo(ctypes.Structure):
    """common_control_vector_load_info: a strength and a std::string.

    The wheel is built with the string of before C++11: a pointer to the characters, before which stand their
    number, the capacity and a count of references.
    """

    _fields_ = [("strength", ctypes.c_float), ("characters", ctypes.c_void_p)]


class Loaded(ctypes.Structure):
    """common_control_vector_data; `n_embd` is -1 where the file was refused."""

    _fields_ = [("n_embd", ctypes.c_int32), ("data", Vector)]


class LlamaCpp:
    """A GGUF loaded by llama.cpp; a context manager."""

    _api: Any = None

    def __init__(self, path: Path) -> None:
        self.api = api = self._open()
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        parameters = api.llama_context_default_params()
        found = {word: parameters.words[word] for word in DEFAULTS}
        if found != DEFAULTS:
            raise RuntimeError(f"llama_context_params has changed: {found}; adapt {__file__}")
        parameters.words[THREADS] = parameters.words[BATCH_THREADS] = 1
        parameters.words[FLASH] = 0
        parameters.words[CACHE_K] = parameters.words[CACHE_V] = FLOAT32
        self.context = api.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.width = api.llama_model_n_embd(self.model)
        self.layers = api.llama_model_n_layer(self.model)
        self.words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)

    def control(self, file: Path | None, strength: float = 1.0) -> None:
        """Set a control vector as llama.cpp's programs do with `--control-vector FILE`; None takes it off."""
        if file is None:
            self._set(None, 0, -1, -1)
            return
        data = self.read(file, strength)
        # The programs' own default range, 1 to the last layer.
        self._set(data.ctypes.data, data.size, 1, self.layers)

    def control_at(self, layer: int, vector: torch.Tensor) -> None:
        """Set one vector where the API says that layer `layer` is: its buffer starts at layer 1."""
        data = np.zeros((self.layers, self.width), np.float32)
        data[layer - 1] = vector.numpy()
        self._set(data.ctypes.data, data.size, 1, self.layers)

    def _set(self, data: int | None, size: int, first: int, last: int) -> None:
        if self.api.llama_set_adapter_cvec(self.context, data, size, self.width, first, last) != 0:
            raise RuntimeError("llama.cpp refuses the control vector")

    @classmethod
    def read(cls, file: Path, strength: float = 1.0) -> np.ndarray:
        """What llama.cpp's own reader makes of a file: float32 [layers from 1 on, width], flat."""
        name = str(file).encode()
        text = ctypes.create_string_buffer(struct.pack("QQi4x", len(name), len(name), 0) + name)
        info = LoadInfo(strength, ctypes.addressof(text) + 24)
        start = ctypes.addressof(info)
        end = start + ctypes.sizeof(info)
        loaded = getattr(cls._open(), LOAD_FILE)(ctypes.byref(Vector(start, end, end)))
        if loaded.n_embd < 0:
            raise RuntimeError(f"llama.cpp refuses {file}")
        count = (loaded.data.end - loaded.data.begin) // 4
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(loaded.data.begin)).copy()

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits of every token, float32 [tokens, vocabulary]."""
        api, count = self.api, len(tokens)
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        batch = api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        status = api.llama_decode(self.context, batch)
        api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        found = np.ctypeslib.as_array(api.llama_get_logits(self.context), (count, self.words))
        return torch.from_numpy(found.copy())

    @classmethod
    def _open(cls) -> Any:
        if LlamaCpp._api is None:
            package = importlib.util.find_spec("xllamacpp.xllamacpp")
            if package is None or package.origin is None:
                raise RuntimeError("xllamacpp is not installed")
            api = ctypes.CDLL(package.origin)
            pointer, number, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
            for name, result, *arguments in [
                ("llama_backend_init", None),
                ("llama_log_set", None, pointer, pointer),
                ("llama_model_default_params", Parameters),
                ("llama_context_default_params", Parameters),
                ("llama_model_load_from_file", pointer, ctypes.c_char_p, Parameters),
                ("llama_init_from_model", pointer, pointer, Parameters),
                ("llama_free", None, pointer),
                ("llama_model_free", None, pointer),
                ("llama_model_n_embd", number, pointer),
                ("llama_model_n_layer", number, pointer),
                ("llama_model_get_vocab", pointer, pointer),
                ("llama_vocab_n_tokens", number, pointer),
                ("llama_get_memory", pointer, pointer),
                ("llama_memory_clear", None, pointer, flag),
                ("llama_batch_init", Batch, number, number, number),
                ("llama_batch_free", None, Batch),
                ("llama_decode", number, pointer, Batch),
                ("llama_get_logits", ctypes.POINTER(ctypes.c_float), pointer),
                ("llama_set_adapter_cvec", number, pointer, pointer, ctypes.c_size_t, number, number, number),
                (LOAD_FILE, Loaded, ctypes.POINTER(Vector)),
            ]:
                function = getattr(api, name)
                function.restype, function.argtypes = result, arguments
            LlamaCpp._silence = ctypes.CFUNCTYPE(None, number, ctypes.c_char_p, pointer)(lambda *_: None)
            api.llama_log_set(LlamaCpp._silence, None)
            api.llama_backend_init()
            LlamaCpp._api = api
        return LlamaCpp._api


def write_llama(model: Any, path: Path) -> Path:
    """A Llama of transformers as an F32 GGUF without a vocabulary, for token ids."""
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = value.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
            count = heads if "q_proj" in name else kv_heads
            halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
