"""The parameters of a request to `inference`, read and checked."""

import json
from dataclasses import dataclass

MOST = 2**63 - 1


@dataclass(frozen=True)
class Options:
    """What a request may ask for.

    `max_message_ids`: most ids in one message. `trace_heap`: report the Python heap in HEAP. `guard`: check every
    message before it leaves. `log`: write a line for each message. `window` and `window_key`: send that many messages,
    then wait for grants with this key. `grant` and `window_key`: this request is such a grant; 0 ends the stream.
    `mutation`: the fault that `inference_mutant` is to make.
    """

    max_message_ids: int
    trace_heap: bool
    guard: bool
    log: bool
    window: int | None
    window_key: int | None
    grant: int | None
    mutation: object


def read_options(text, default_message_ids, hard_message_ids):
    """The options in a request's parameters, which are JSON; one that is not what it should be is a ValueError."""
    given = json.loads(text or "{}")
    options = Options(
        max_message_ids=_number(given, "max_message_ids", 1, hard_message_ids) or default_message_ids,
        trace_heap=_switch(given, "trace_heap"),
        guard=_switch(given, "guard"),
        log=_switch(given, "log"),
        window=_number(given, "window", 1),
        window_key=_number(given, "window_key", 1),
        grant=_number(given, "grant", 0),
        mutation=given.get("mutation"),
    )
    _check_window(options)
    return options


def _number(given, name, least, most=MOST):
    value = given.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise ValueError(f'request parameter "{name}" is {value!r}; expected a whole number from {least} to {most:,}')
    return value


def _switch(given, name):
    value = given.get(name, False)
    if type(value) is not bool:
        raise ValueError(f'request parameter "{name}" is {value!r}; expected true or false')
    return value


def _check_window(options):
    """A key names a window, and a request either opens one or grants for one."""
    uses = [name for name in ("window", "grant") if getattr(options, name) is not None]
    if len(uses) == 2:
        raise ValueError('request parameters "window" and "grant" exclude each other; send one of them')
    if uses and options.window_key is None:
        raise ValueError(f'request parameter "{uses[0]}" needs a "window_key", which says whose window it is')
    if options.window_key is not None and not uses:
        raise ValueError('request parameter "window_key" needs a "window" that it opens, or a "grant" for one')
