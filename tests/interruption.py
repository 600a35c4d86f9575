"""Ctrl-C at a place that is known beforehand."""

import itertools


def at_call(monkeypatch, module, name, call):
    """The function ``name`` of a module is interrupted when it is called for the given time."""
    calls, function = itertools.count(1), getattr(module, name)

    def interrupted(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(module, name, interrupted)
