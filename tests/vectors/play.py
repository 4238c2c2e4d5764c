"""Plays digests.json and sessions.json with the Python client."""

import secrets

from attention_client import AttentionError, StepItem
from vectors.pattern import digest, fill

TENSORS = ("query", "key", "value", "mask", "past_key", "past_value")
ANSWERS = ("output_sha256", "length_then", "lengths_then", "error")
ENUMS = ("layout", "causal")


def arguments(message):
    """What Client.compute() and the calls of sessions take, of a request."""
    taken = {}
    for name, value in {**message, **message.get("options", {})}.items():
        if name in TENSORS:
            taken[name] = fill(value)
        elif name in ENUMS:
            taken[name] = value.split("_", 1)[1].lower()
        elif name == "window":
            taken[name] = (value.get("left"), value.get("right"))
        elif name == "not_causal":
            taken["causal"] = None
        elif name != "options":
            taken[name] = value
    return taken


def error_of(error):
    told = {"code": error.code.name, "reason": error.reason}
    if error.field_violations:
        told["field"] = error.field_violations[0].field
    if (length := getattr(error, "length", None)) is not None:
        told["length"] = length
    return {"error": told}


def compute(client, request):
    try:
        output = client.compute(**arguments(request)).output
    except AttentionError as error:
        return error_of(error)
    return {"output_sha256": digest(output)}


def script(client, config, steps):
    """The steps, each with its answer."""
    config = dict(config)
    session = client.create_session(
        layers=config.pop("num_layers", 1),
        data_type=config.pop("data_type", "_FLOAT32").split("_")[-1].lower(),
        **config,
    )
    sessions = {"a": session}
    try:
        return [step | play(client, sessions, step) for step in steps]
    finally:
        for made in sessions.values():
            made.delete()


def without_answers(steps):
    """The steps as they were before they were played."""
    asked = []
    for step in steps:
        kept = {name: step[name] for name in step if name not in ANSWERS}
        if "items" in kept:
            kept["items"] = without_answers(kept["items"])
        asked.append(kept)
    return asked


def play(client, sessions, step):
    """What one step is answered."""
    if step["do"] == "batch":
        items = [item_of(sessions, item) for item in step["items"]]
        results = client.step(items)
        told = zip(step["items"], results, strict=True)
        return {"items": [item | outcome(result) for item, result in told]}
    try:
        return outcome(call(client, sessions, step))
    except AttentionError as error:
        return error_of(error)


def call(client, sessions, step):
    session = sessions[step["session"]]
    kind = step["do"]
    if kind in ("append", "attend", "step"):
        (result,) = client.step([item_of(sessions, step)])
        return result
    if kind == "fork":
        (sessions[step["target"]],) = client.fork_sessions(
            {secrets.token_hex(16): session}
        )
        return sessions[step["target"]].lengths
    if kind == "open":
        sessions[step["target"]] = client.get_session(session.id)
        return sessions[step["target"]].lengths
    if kind == "truncate":
        session.truncate(step["length"])
        return session.lengths
    if kind == "refresh":
        session.refresh()
        return session.lengths
    assert kind == "delete", kind
    session.delete()
    return None


def item_of(sessions, step):
    message = {
        name: value
        for name, value in step.items()
        if name in (*TENSORS, "options", "not_causal")
    }
    return StepItem(
        sessions[step["session"]], layer=step["layer"], **arguments(message)
    )


def outcome(result):
    """Of a result, a layer's length, lengths, nothing, or an error."""
    if isinstance(result, AttentionError):
        return error_of(result)
    if isinstance(result, int):
        return {"length_then": result}
    if isinstance(result, tuple):
        return {"lengths_then": list(result)}
    if result is None:
        return {}
    return {"output_sha256": digest(result.output)}
