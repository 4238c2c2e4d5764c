"""The operator `attention_client::attend`, for torch.compile.

A compiler cannot trace a call over the network. It is told what comes back, by a
fake, and calls the operator when the compiled model runs. Nothing is checked
while a model is compiled: the operator hands all arguments on to hf.py, which
refuses here what it refuses without torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Arguments that say nothing of what attention computes.
MEANINGLESS = frozenset(
    (
        "cache_position",
        "deterministic",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    )
)
# Of hf.py: (module, query, key, value, mask, **others) to (B, S, Hq, Dv).
Attend = Callable[..., torch.Tensor]
# By the name that register() gave it.
_ATTEND: dict[str, Attend] = {}


def define(name: str, attend: Attend) -> None:
    """Says what the operator calls for this name."""
    _ATTEND[name] = attend


def traced(
    name: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    is_causal: bool | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    output_attentions: bool | None = None,
    **others: Any,
) -> torch.Tensor:
    """A call of the operator, with the arguments of an attention
    implementation."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    tensors = []
    names = []
    # Whose values an operator cannot be given. None of them says what attention
    # computes: their names suffice, to ignore or to refuse them.
    flags = ["output_attentions"] if output_attentions else []
    for argument, given in others.items():
        if argument in MEANINGLESS:
            continue
        if isinstance(given, torch.Tensor):
            names.append(argument)
            tensors.append(given)
        elif given is not None:
            flags.append(argument)
    output: torch.Tensor = torch.ops.attention_client.attend(
        query,
        key,
        value,
        mask,
        tensors,
        ",".join(names),
        ",".join(flags),
        bool(is_causal),
        scaling,
        softcap,
        dropout,
        name,
    )
    return output


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    tensors: list[torch.Tensor],
    names: str,
    flags: str,
    is_causal: bool,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
    name: str,
) -> torch.Tensor:
    others: dict[str, Any] = dict(zip(names.split(","), tensors))
    others.update(dict.fromkeys(flags.split(",") if flags else (), True))
    output = _ATTEND[name](
        None,
        query,
        key,
        value,
        mask,
        is_causal=is_causal,
        scaling=scaling,
        softcap=softcap,
        dropout=dropout,
        **others,
    )
    # The strides that the fake has, also where they do not matter.
    return output.as_strided(
        output.shape, torch.empty(output.shape, device="meta").stride()
    )


def _attend_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    tensors: list[torch.Tensor],
    *others: Any,
) -> torch.Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty((batch, queries, heads, value.shape[-1]))


def _refuse_gradients(*others: Any, **keywords: Any) -> Any:
    raise NotImplementedError(
        "gradients: none come back from the server: call the model under "
        "torch.no_grad()"
    )


_operator = torch.library.custom_op(
    "attention_client::attend",
    _attend,
    mutates_args=(),
    schema=(
        "(Tensor query, Tensor key, Tensor value, Tensor? mask, "
        "Tensor[] tensors, str names, str flags, bool is_causal, "
        "float? scaling, float? softcap, float dropout, str name) -> Tensor"
    ),
)
_operator.register_fake(_attend_fake)
_operator.register_autograd(_refuse_gradients, setup_context=_refuse_gradients)
