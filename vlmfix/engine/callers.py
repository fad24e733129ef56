"""Who uses a model: a block belongs to the thread that entered it, and calls take turns."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import text_decoder

PATIENCE = 10.0
"""Seconds for which another caller's block may stand idle until those who wait for its end are refused."""


class Caller:
    """Who entered a block: a thread or an asyncio task, with all that it starts while the block is open.

    Args:
        label: what the block is for, for messages.
    """

    def __init__(self, label: str) -> None:
        thread, task = threading.current_thread(), _current_task()
        self.label = label
        self.thread_name = thread.name
        self.blocks = 0
        self._thread = weakref.ref(thread)
        self._task = None if task is None else weakref.ref(task)

    @property
    def is_here(self) -> bool:
        """Whether it is the one that is running, or started it."""
        return self.entered_here or self in _given()

    @property
    def entered_here(self) -> bool:
        """Whether this very thread or task entered the block."""
        return self._thread() is threading.current_thread() and not self.is_other_task

    @property
    def is_other_task(self) -> bool:
        """Whether it is another asyncio task of this thread, which cannot go on while this one waits."""
        if self._task is None or self._thread() is not threading.current_thread():
            return False
        task = _current_task()
        return task is not None and task is not self._task() and self not in _given()


class Turns:
    """The blocks and calls of one model: one caller at a time, and one call at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._callers: list[Caller] = []  # each started by the one before it
        self._thread: threading.Thread | None = None
        self._depth = 0
        self._moved = time.monotonic()

    @property
    def is_here(self) -> bool:
        """Whether nobody else has a block open."""
        callers = self._callers
        return not callers or callers[-1].is_here

    @property
    def is_mine(self) -> bool:
        """Whether this thread is inside a call."""
        return self._thread is threading.current_thread()

    def enter(self, label: str) -> Caller:
        """Open a block, when the blocks of others have been left.

        Raises:
            UnsupportedError: another caller keeps its block open and does nothing in it.
        """
        with self._changed:
            self._wait(lambda: self.is_here)
            if not self._callers or not self._callers[-1].entered_here:
                self._callers.append(Caller(label))
                _remember(self._callers[-1])
            caller = self._callers[-1]
            caller.blocks += 1
            _context.set(_given() | {caller})
            self._move()
        return caller

    def leave(self, caller: Caller) -> None:
        """Close a block of a caller."""
        with self._changed:
            caller.blocks -= 1
            if not caller.blocks:
                self._callers.remove(caller)
                _forget(caller)
                _context.set(_given() - {caller})
            self._move()

    @contextmanager
    def block(self, label: str) -> Iterator[None]:
        """A block that nobody else's calls come between; see `enter`."""
        caller = self.enter(label)
        try:
            yield
        finally:
            self.leave(caller)

    def await_others(self) -> None:
        """Return when the blocks of others have been left.

        Raises:
            UnsupportedError: see `enter`.
        """
        with self._changed:
            self._wait(lambda: self.is_here)

    def begin(self, *, stranger: bool = False) -> None:
        """Begin a call, when that of another thread has ended; calls of one thread may nest.

        Args:
            stranger: whether it comes between the calls of another caller's block.

        Raises:
            UnsupportedError: see `enter`.
        """
        thread = threading.current_thread()
        with self._changed:
            self._wait(lambda: self._is_free(thread) and (stranger or self.is_here))
            if self._thread is not thread:
                self._thread, self._depth = thread, 0
            self._depth += 1
            self._move()

    def end(self) -> None:
        """End a call."""
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._thread = None
            self._move()

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call; see `begin`."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def _is_free(self, thread: threading.Thread) -> bool:
        return self._thread in (None, thread) or not self._thread.is_alive()

    def _move(self) -> None:
        self._moved = time.monotonic()
        self._changed.notify_all()

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not is_ready():
            caller = next((each for each in reversed(self._callers) if not each.is_here), None)
            if caller is not None and caller.is_other_task:
                raise UnsupportedError(
                    f"another asyncio task of this thread is inside a block of {caller.label} on this model; "
                    "put the block and the call together into a function for asyncio.to_thread, where they "
                    "wait for their turn"
                )
            idle = time.monotonic() - max(began, self._moved)
            if caller is not None and self._thread is None and idle > PATIENCE:
                raise UnsupportedError(
                    f"thread {caller.thread_name!r} is inside a block of {caller.label} on this model and "
                    f"has made no call for {PATIENCE:g} seconds, and this thread, which was not started in "
                    "the block, waits for its end; start the thread inside the block (a pool, too), or enter "
                    "the block in the thread that calls the model"
                )
            self._changed.wait(timeout=0.5)


def turns_of(model: PreTrainedModel) -> Turns:
    """The turns of a model, or of several with the same language model."""
    decoder = text_decoder(model)
    with _lock:
        return _turns.setdefault(decoder, Turns())


_lock = threading.RLock()
_turns: weakref.WeakKeyDictionary[nn.Module, Turns] = weakref.WeakKeyDictionary()
_open_callers: frozenset[Caller] = frozenset()
_context: ContextVar[frozenset[Caller] | None] = ContextVar("vlmfix_callers", default=None)
_inherited: weakref.WeakKeyDictionary[threading.Thread, frozenset[Caller]] = weakref.WeakKeyDictionary()
_start: Any = threading.Thread.start
_submit: Any = ThreadPoolExecutor.submit


def _given() -> frozenset[Caller]:
    """The callers of whom this context, or else this thread, was started."""
    context = _context.get()
    return _inherited.get(threading.current_thread(), frozenset()) if context is None else context


def _remember(caller: Caller) -> None:
    """Let threads and jobs belong to the blocks in which they are started, as `asyncio.to_thread` does."""
    global _open_callers
    with _lock:
        _open_callers |= {caller}
        for owner, name, stock, inside in _STARTERS:
            if getattr(owner, name) is stock:
                setattr(owner, name, inside)


def _forget(caller: Caller) -> None:
    global _open_callers
    with _lock:
        _open_callers -= {caller}
        for owner, name, stock, inside in _STARTERS:
            if not _open_callers and getattr(owner, name) is inside:
                setattr(owner, name, stock)


def _callers_here() -> frozenset[Caller]:
    return frozenset(caller for caller in _open_callers if caller.is_here)


@functools.wraps(_start)
def _start_inside(self: threading.Thread) -> None:
    _inherited[self] = _callers_here()
    _start(self)


@functools.wraps(_submit)
def _submit_inside(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    here = _callers_here()

    def job(*args: Any, **kwargs: Any) -> Any:
        token = _context.set(here)
        try:
            return fn(*args, **kwargs)
        finally:
            _context.reset(token)

    return _submit(self, job, *args, **kwargs)


# Python tells a thread nothing about the one that started it: while a block is open, these do.
_STARTERS = (
    (threading.Thread, "start", _start, _start_inside),
    (ThreadPoolExecutor, "submit", _submit, _submit_inside),
)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
