"""Hugging Face transformers with attention, and keys and values, in a server.

    from attention_client import hf

    hf.register("127.0.0.1:50051")  # Once in a process.
    model.set_attn_implementation("remote")
    with hf.RemoteCache("127.0.0.1:50051", model.config) as cache:
        model.generate(**inputs, cache=cache)

The model is as it was. With RemoteCache keys and values go to the server once
and stay there, in a session for each row of the batch: for each layer a forward
pass sends queries and new tokens, in one message. Without it, or with another
cache, each layer sends all keys and values each time.

What a model asks for that the service does not have raises NotImplementedError,
which names it; nothing is ignored. Under torch.compile the model is one graph,
in which each layer calls an operator (hf_operator.py); RemoteCache breaks that
graph at each layer. Under torch.autocast query, key and value are cast as
PyTorch's own attention casts them. Needs torch and transformers, as the extra
"hf" installs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import ml_dtypes
    import torch
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"attention_client.hf needs {error.name}, which the extra hf brings: "
        "pip install './client/python[hf]'",
        name=error.name,
    ) from None

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    get_layer_types_and_kwargs,
)
from transformers.masking_utils import eager_mask

from attention_client import hf_masks, hf_operator
from attention_client.client import Client
from attention_client.errors import AttentionError
from attention_client.sessions import Session, StepItem, id_or_new

# Layers that keep keys and values which only grow, and those that keep none of
# them, and stay in this process.
_REMOTE = ("full_attention", "sliding_attention", "chunked_attention")
_LOCAL = ("linear_attention", "conv", "dummy")
# Of keys and values that RemoteCache has returned: their _NewTokens.
_TAG = "attention_client_new_tokens"
_MOST_FORKS = 128
# Masks of sessions begin at multiples of it.
_MASK_STEP = 256


def register(target_or_client: str | Client, name: str = "remote") -> None:
    """Gives transformers an attention implementation of this name, for
    model.set_attn_implementation(name).

    Args:
        target_or_client: the server, for layers that no RemoteCache keeps.
    """
    client, _ = _client_of(target_or_client)

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        query, key, value = _autocast(query, key, value)
        if torch.compiler.is_compiling() and not hasattr(key, _TAG):
            return hf_operator.traced(
                name, module, query, key, value, attention_mask, **others
            ), None
        return attend(module, query, key, value, attention_mask, **others), None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        module: torch.nn.Module | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **others: Any,
    ) -> torch.Tensor:
        asked = _Asked.of(module, query, attention_mask, **others)
        new = getattr(key, _TAG, None)
        if new is not None:
            return new.attended(asked, value)
        _check_gradients(query, key, value)
        return asked.computed(client, key, value)

    hf_operator.define(name, attend)
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _mask)


class RemoteCache(Cache):  # type: ignore[misc]
    """A transformers cache whose keys and values are in a server.

    For one generate() at a time, of a model whose attention implementation is
    that of register(). All that generate() does to a cache works: beams fork
    sessions, prompt lookup and assistants truncate them. copy.deepcopy() makes a
    cache that goes on from the same tokens, which share their memory: for
    prompts that begin alike.

    Layers without keys and values (linear attention, convolutions) stay in this
    process. Layers with a sliding window, or chunks, keep what it covers.

    A forward pass that fails leaves its tokens in some layers and not in others.
    Everything but reset() raises RuntimeError then.
    """

    def __init__(
        self,
        target_or_client: str | Client,
        config: Any,
        *,
        lease: float = 60.0,
        rollback_tokens: int | None = 256,
    ) -> None:
        """Does not connect yet.

        Args:
            target_or_client: the server.
            config: the model's.
            lease: of the sessions, in seconds; they are renewed while this
                object lives.
            rollback_tokens: how many tokens can be cropped, at least, where
                layers have a sliding window: prompt lookup and assistants crop
                those of a draft. None: such layers keep all tokens.

        Raises:
            NotImplementedError: the model has layers whose keys and values
                cannot be kept by a session.
        """
        text_config = config.get_text_config(decoder=True)
        kinds, arguments = get_layer_types_and_kwargs(text_config)
        unknown = sorted(set(kinds) - {*_REMOTE, *_LOCAL})
        if unknown:
            raise NotImplementedError(
                f"config: the model has layers of type {', '.join(unknown)}, "
                "whose keys and values no session can keep"
            )
        windows = [
            layer_arguments.get("sliding_window") or 0
            if kind != "full_attention"
            else 0
            for kind, layer_arguments in zip(kinds, arguments)
            if kind in _REMOTE
        ]
        # Later layers attend once more to the keys of an earlier one, when it
        # has released what the first queries of a prompt see.
        shared = getattr(text_config, "num_kv_shared_layers", None) or (
            "reuse" in (getattr(text_config, "kv_sharing_modes", None) or ())
        )
        if rollback_tokens is None or shared:
            windows, rollback_tokens = [0] * len(windows), 0
        client, is_own = _client_of(target_or_client)
        store = _Store(client, is_own, windows, rollback_tokens, lease)
        numbers = itertools.count()
        self._fill(
            store,
            [
                RemoteLayer(store, next(numbers), kind != "full_attention")
                if kind in _REMOTE
                else DYNAMIC_LAYER_TYPE_MAPPING[kind](**layer_arguments)
                for kind, layer_arguments in zip(kinds, arguments)
            ],
        )

    def _fill(self, store: _Store, layers: list[Any]) -> None:
        super().__init__(layers=layers)
        self._store = store

    @property
    def sessions(self) -> list[Session]:
        """Those of the batch's rows, once there are any."""
        return [s for rows in self._store.rows.values() for s in rows]

    def __enter__(self) -> RemoteCache:  # noqa: PYI034
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Deletes the sessions. A cache that is only forgotten leaves them until
        their leases are over."""
        self._store.close()

    def reset(self) -> None:
        self._store.delete_all()
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        self._store.truncate(max(0, -tokens_to_remove))
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._store.select(beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self._store.select(indices.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._store.select(
            [
                row
                for row in range(self._store.batch_size)
                for _ in range(repeats)
            ]
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteCache:
        import copy

        made = RemoteCache.__new__(RemoteCache)
        store = self._store.copy()
        memo[id(self._store)] = store
        made._fill(store, copy.deepcopy(self.layers, memo))
        return made


class RemoteLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer of RemoteCache."""

    supports_early_init = False

    def __init__(self, store: _Store, number: int, is_sliding: bool) -> None:
        super().__init__()
        self._store = store
        self._number = number
        self._window = store.windows[number]
        self._length = 0
        self.is_sliding = is_sliding

    @property
    def is_croppable(self) -> bool:
        # A session is truncated in all its layers, so it has to use all.
        return len(self._store.rows) <= 1

    def lazy_initialization(self, *states: torch.Tensor) -> None:
        self.is_initialized = True

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what stands for the layer's keys and values: of their shape,
        all elements NaN in memory of one, and known to hf.register()."""
        key_states, value_states = _autocast(key_states, value_states)
        _check_gradients(key_states, value_states)
        self.is_initialized = True
        mask_begin = self._mask_begin()
        self._length += key_states.shape[-2]
        new = _NewTokens(
            self._store,
            self._number,
            self._window,
            self._length,
            mask_begin,
            key_states,
            value_states,
        )
        self._store.expect(new)
        keys = _stand_in(key_states, self._length)
        values = _stand_in(value_states, self._length)
        setattr(keys, _TAG, new)
        setattr(values, _TAG, new)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        begin = self._mask_begin()
        return self._length + query_length - begin, begin

    def _mask_begin(self) -> int:
        """The first token that masks of the next queries need to have."""
        if not self._window:
            return 0
        seen = max(0, self._length + 1 - self._window)
        return seen // _MASK_STEP * _MASK_STEP

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(
                f"tokens_to_remove: got {tokens_to_remove}, wanted a negative "
                "number, of the tokens to remove, or 0"
            )
        self._length = max(0, self._length + tokens_to_remove)

    def reset(self) -> None:
        self._length = 0

    # The sessions, which all layers share, are the cache's.

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        pass

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        pass

    def batch_repeat_interleave(self, repeats: int) -> None:
        pass


@dataclass
class _NewTokens:
    """Keys and values of a layer that are sent with its first queries."""

    store: _Store
    layer: int
    # The layer's; 0 if it keeps all tokens.
    window: int
    # The layer's, with these tokens.
    length: int
    # The token of the first column of masks.
    mask_begin: int
    # (B, Hkv, n, D) and (B, Hkv, n, Dv); None once they are sent.
    key: torch.Tensor | None
    value: torch.Tensor | None
    rows: list[Session] = field(default_factory=list)

    def attended(self, asked: _Asked, value: torch.Tensor) -> torch.Tensor:
        try:
            if getattr(value, _TAG, None) is not self:
                raise NotImplementedError(
                    f"the values of layer {self.layer}, which RemoteCache "
                    "returned, did not reach the attention of hf.register(): the "
                    "model changes them before"
                )
            return self._attended(asked)
        except BaseException as error:
            self.store.failure = error
            raise

    def _attended(self, asked: _Asked) -> torch.Tensor:
        asked.check_length(self.length - self.mask_begin)
        asked.check_mask_is_known()
        implied = {}
        if self.window:
            asked.check_window(self.window)
            implied = {
                "causal": "bottom_right",
                "window": (self.window - 1, None),
            }
        asked = asked.with_options(implied).without_needless_mask(
            self.mask_begin
        )
        if asked.mask is not None:
            asked = asked.with_options({"mask_begin": self.mask_begin})
        keys = values = itertools.repeat(None)
        if self.key is not None and self.value is not None:
            self.rows = self.store.rows_for(self.key, self.value)
            keys, values = _numpy(self.key), _numpy(self.value)  # type: ignore[assignment]
        items = [
            StepItem(
                session,
                query=query,
                key=key,
                value=value,
                layer=self.layer,
                **{**asked.options, **asked.of_row(row)},
            )
            for row, (session, query, key, value) in enumerate(
                zip(self.rows, _numpy(asked.query), keys, values)
            )
        ]
        self.key = self.value = None
        self.store.expected = None
        results = self.store.client.step(items)
        outputs = []
        for result in results:
            if isinstance(result, AttentionError):
                raise result
            outputs.append(result.output)  # type: ignore[union-attr]
        return _merged(outputs, asked.query)


class _Store:
    """The sessions of a cache."""

    def __init__(
        self,
        client: Client,
        is_own: bool,
        windows: list[int],
        rollback_tokens: int,
        lease: float,
    ) -> None:
        self.client = client
        self._is_own = is_own
        # Of each layer that is here; 0 if it keeps all tokens.
        self.windows = windows
        self._rollback_tokens = rollback_tokens
        self._lease = lease
        # By heads and sizes: most models have the same in all layers.
        self.rows: dict[tuple[Any, ...], list[Session]] = {}
        # What update() was given and no attention has come for yet.
        self.expected: _NewTokens | None = None
        # What a forward pass failed with: some layers lack its tokens then.
        self.failure: BaseException | None = None

    def check_whole(self) -> None:
        if self.failure is not None:
            raise RuntimeError(
                "a forward pass over this RemoteCache has failed, so that its "
                "layers do not have the same tokens any more: reset() it, and "
                "begin anew"
            ) from self.failure

    @property
    def batch_size(self) -> int:
        return len(next(iter(self.rows.values()), []))

    def expect(self, new: _NewTokens) -> None:
        self.check_whole()
        if self.expected is not None:
            layer, self.expected = self.expected.layer, None
            raise NotImplementedError(
                f"the keys of layer {layer}, which RemoteCache returned, did not "
                "reach the attention of hf.register(): the model changes them "
                "before, or its attention implementation is another one "
                "(model.set_attn_implementation)"
            )
        self.expected = new

    def rows_for(self, key: torch.Tensor, value: torch.Tensor) -> list[Session]:
        """The sessions of keys and values of this shape."""
        batch, kv_heads, _, head_size = key.shape
        form = (kv_heads, head_size, value.shape[-1], key.dtype)
        if form not in self.rows:
            self.rows[form] = [
                self.client.create_session(
                    layers=len(self.windows),
                    kv_heads=kv_heads,
                    head_size=head_size,
                    value_head_size=value.shape[-1],
                    data_type=str(key.dtype).removeprefix("torch."),
                    lease=self._lease,
                    retain_window=self.windows,
                    rollback_tokens=self._rollback_tokens,
                )
                for _ in range(batch)
            ]
        rows = self.rows[form]
        if len(rows) != batch:
            raise ValueError(
                f"key: got a batch of {batch}, but the cache holds {len(rows)}"
            )
        return rows

    def truncate(self, tokens: int) -> None:
        self.check_whole()
        if tokens == 0:
            return
        if len(self.rows) > 1:
            # Each of its sessions has layers without tokens.
            raise NotImplementedError(
                "crop: the model's layers have keys of several shapes"
            )
        for rows in self.rows.values():
            for session in rows:
                session.truncate(max(0, session.length - tokens))

    def select(self, indices: Sequence[int]) -> None:
        """Makes row i a copy of what row indices[i] was."""
        self.check_whole()
        for form, rows in self.rows.items():
            left = set(range(len(rows)))
            selected: list[Session | None] = []
            for index in indices:
                selected.append(rows[index] if index in left else None)
                left.discard(index)
            forks = iter(
                self._forked(
                    [
                        rows[index]
                        for index, session in zip(indices, selected)
                        if session is None
                    ]
                )
            )
            self.rows[form] = [
                next(forks) if session is None else session
                for session in selected
            ]
            for index in left:
                rows[index].delete()

    def _forked(self, sources: Sequence[Session]) -> list[Session]:
        made: list[Session] = []
        for begin in range(0, len(sources), _MOST_FORKS):
            some = sources[begin : begin + _MOST_FORKS]
            made += self.client.fork_sessions(
                {id_or_new(None): source for source in some}
            )
        return made

    def copy(self) -> _Store:
        self.check_whole()
        made = _Store(
            self.client,
            False,
            self.windows,
            self._rollback_tokens,
            self._lease,
        )
        made.rows = {
            form: self._forked(rows) for form, rows in self.rows.items()
        }
        return made

    def delete_all(self) -> None:
        rows, self.rows = self.rows, {}
        self.expected = self.failure = None
        for sessions in rows.values():
            for session in sessions:
                session.delete()

    def close(self) -> None:
        try:
            self.delete_all()
        finally:
            if self._is_own:
                self.client.close()


@dataclass
class _Asked:
    """What a layer asks of attention."""

    # (B, Hq, S, D).
    query: torch.Tensor
    # Numbers or bools, (B or 1, Hq or 1, S, T).
    mask: NDArray[Any] | None
    # Of Session.attend() and of Client.compute().
    options: dict[str, Any]
    # A sink of each row, (B or 1, Hq, S), and the keys that queries see,
    # (B or 1, S, k) or (B or 1, Hq, S, k), -1 for none.
    sinks: NDArray[Any] | None = None
    indices: NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        module: torch.nn.Module,
        query: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        # Both are in the mask already.
        sliding_window: int | None = None,
        chunk_size: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> _Asked:
        if dropout:
            raise NotImplementedError(
                f"dropout: got {dropout}, wanted 0: call model.eval()"
            )
        if output_attentions:
            raise NotImplementedError(
                "output_attentions: the weights stay in the server"
            )
        for name, value in others.items():
            if value is not None and name not in hf_operator.MEANINGLESS:
                raise NotImplementedError(
                    f"{name}: the model's attention has this argument, which "
                    "the service does not know"
                )
        _check_gradients(query)
        # Two names for the same, by the model.
        sinks_name, logits = (
            ("sinks", sinks) if s_aux is None else ("s_aux", s_aux)
        )
        if s_aux is not None and sinks is not None:
            raise NotImplementedError("sinks: got them beside s_aux")
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        causal = (
            attention_mask is None and bool(is_causal) and query.shape[2] > 1
        )
        return cls(
            query,
            _joined_mask(attention_mask, position_bias),
            {
                "scale": scaling,
                "softcap": 0 if softcap is None else softcap,
                "causal": "bottom_right" if causal else None,
                "sinks": _head_sinks(logits),
            },
            _row_sinks(sinks_name, logits, query),
            None if indices is None else _numpy(indices),
        )

    def with_options(self, options: dict[str, Any]) -> _Asked:
        return replace(self, options={**self.options, **options})

    def without_needless_mask(self, begin: int = 0) -> _Asked:
        """The same by options instead of the mask, where options can say it.

        Args:
            begin: the token of the mask's first column.
        """
        if self.mask is None:
            return self
        options = hf_masks.options_for(self.mask, begin)
        if options is None:
            return self
        return replace(self.with_options(options), mask=None)

    def check_length(self, length: int) -> None:
        if self.mask is not None and self.mask.shape[-1] != length:
            raise NotImplementedError(
                f"attention_mask: got one for {self.mask.shape[-1]} keys, but "
                f"the layer has {length}"
            )

    def check_mask_is_known(self) -> None:
        """That the mask is not made of what stands for keys and values."""
        if self.mask is not None and np.isnan(self.mask).any():
            raise NotImplementedError(
                "attention_mask: got NaN: the model makes its mask of keys or "
                "values, which RemoteCache keeps in the server"
            )

    def check_window(self, window: int) -> None:
        """That nobody sees a later token, or one before the window."""
        if self.mask is None:
            return
        queries, keys = self.mask.shape[-2:]
        behind = (
            np.arange(keys - queries, keys)[:, None] - np.arange(keys)[None]
        )
        hidden = (behind < 0) | (behind >= window)
        if self.mask.dtype == np.bool_:
            seen = self.mask
        else:
            # Eager attention hides by the least number of the mask's type.
            seen = self.mask > float(np.finfo(np.float16).min)
        if (seen & hidden).any():
            raise NotImplementedError(
                "attention_mask: some queries see later tokens, or more than "
                f"the layer's window of {window}, which it does not keep: make "
                "the RemoteCache with rollback_tokens=None"
            )

    def of_row(self, row: int) -> dict[str, Any]:
        """Arguments for a row of the batch."""
        arguments = {"mask": self.mask, "indices": self.indices}
        if self.sinks is not None:
            arguments["sinks"] = self.sinks
        return {
            name: None if x is None else x[row if len(x) > 1 else 0]
            for name, x in arguments.items()
        }

    def computed(
        self, client: Client, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """The same over keys and values that are sent along."""
        queries, keys = self.query.shape[2], key.shape[2]
        self.check_length(keys)
        if self.options["causal"] is not None and queries != keys:
            raise NotImplementedError(
                f"attention_mask: got none for {queries} queries and {keys} "
                "keys, wanted one: which of them see which is not said"
            )
        asked = self.without_needless_mask()
        result = client.compute(
            _numpy(self.query),
            _numpy(key),
            _numpy(value),
            layout="bhsd",
            mask=asked.mask,
            indices=_of_batch(self.indices, self.query),
            **{
                **asked.options,
                "sinks": self.options["sinks"]
                if self.sinks is None
                else _of_batch(self.sinks, self.query),
            },
        )
        return _merged(list(result.output), self.query)


def _mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    config: Any = None,
    **others: Any,
) -> torch.Tensor | None:
    """None where a causal mask, or none, is all that there is; else numbers to
    be added, as for eager attention."""
    kinds = getattr(config, "layer_types", None) or ()
    # Others put keys of their own behind those of the cache, and say in the mask
    # which of them are seen.
    plain = set(kinds) <= {*_REMOTE, *_LOCAL}
    # What a mask has in it is not known while a model is compiled.
    everywhere = (local_size is None or kv_length < local_size) and (
        attention_mask is None
        or (not torch.compiler.is_compiling() and bool(attention_mask.all()))
    )
    if plain and everywhere:
        last = kv_offset + kv_length == q_offset + q_length
        if allow_is_causal_skip and last:
            return None
        if allow_is_bidirectional_skip:
            return None
    mask: torch.Tensor = eager_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        config=config,
        **others,
    )
    return mask


def _joined_mask(
    mask: torch.Tensor | None, bias: torch.Tensor | None
) -> NDArray[Any] | None:
    if bias is None:
        return None if mask is None else _numpy(mask)
    if mask is None:
        return _numpy(bias)
    if mask.dtype == torch.bool:
        hidden = torch.full((), float("-inf"), dtype=bias.dtype)
        return _numpy(torch.where(mask, bias, hidden.to(bias.device)))
    return _numpy(mask + bias)


def _head_sinks(logits: torch.Tensor | None) -> list[float] | None:
    """Those that are one for each head."""
    if logits is None or logits.ndim != 1:
        return None
    sinks: list[float] = logits.detach().to("cpu", torch.float64).tolist()
    return sinks


def _row_sinks(
    name: str, logits: torch.Tensor | None, query: torch.Tensor
) -> NDArray[Any] | None:
    """Those that are one for each row, (B or 1, Hq, S)."""
    if logits is None or logits.ndim == 1:
        return None
    # Eager attention joins them to the scores, as one more column.
    if logits.ndim == 4 and logits.shape[3] == 1:
        logits = logits[..., 0]
    batch, heads, length = query.shape[:3]
    if (
        logits.ndim != 3
        or logits.shape[0] not in (1, batch)
        or tuple(logits.shape[1:]) != (heads, length)
    ):
        raise NotImplementedError(
            f"{name}: got sinks of shape {tuple(logits.shape)}, wanted one for "
            f"each head, or ({batch}, {heads}, {length})"
        )
    return _numpy(logits)


def _of_batch(
    rows: NDArray[Any] | None, query: torch.Tensor
) -> NDArray[Any] | None:
    if rows is None or len(rows) == query.shape[0]:
        return rows
    return np.broadcast_to(rows, (query.shape[0], *rows.shape[1:]))


def _stand_in(new: torch.Tensor, length: int) -> torch.Tensor:
    nothing = torch.full((), float("nan"), dtype=new.dtype, device=new.device)
    return nothing.expand(*new.shape[:2], length, new.shape[-1])


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Casts as torch.autocast does before PyTorch's own attention."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in tensors
    )


def _check_gradients(*tensors: torch.Tensor) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise NotImplementedError(
            "gradients: none come back from the server: call the model under "
            "torch.no_grad()"
        )


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        bits: NDArray[Any] = plain.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: NDArray[Any] = plain.numpy()
    return array


def _merged(outputs: list[NDArray[Any]], query: torch.Tensor) -> torch.Tensor:
    """(Hq, S, Dv) of each row as (B, S, Hq, Dv)."""
    batch = outputs[0][None] if len(outputs) == 1 else np.stack(outputs)
    if batch.dtype == ml_dtypes.bfloat16:
        output = torch.from_numpy(batch.view(np.int16)).view(torch.bfloat16)
    else:
        output = torch.from_numpy(batch)
    return output.to(query.device).transpose(1, 2).contiguous()


def _client_of(target_or_client: str | Client) -> tuple[Client, bool]:
    """The client, and whether it was made here."""
    if isinstance(target_or_client, Client):
        return target_or_client, False
    return Client(target_or_client), True
