"""A signal at one chosen point of a call, handled where CPython handles it.

CPython runs signal handlers between bytecodes, but not between all of them: when a function
begins, after a call, and on a jump back. So to raise at any bytecode from a trace function would
be too much, in places that no signal reaches (between the body of a `with lock:` and the release,
say), and to raise after calls of C code alone would be too little. This sets the interpreter's own
flag for a signal that came in, just before the chosen instruction, and lets the interpreter do the
rest.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import gc
import signal
import sys
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

# Instructions at whose end handlers run.
_MAY_RUN = ("CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "SEND")

# In C, so that it can stand for a trace function without a line of Python of its own, in which the
# handler would run already. It ignores its arguments. The signal is SIGINT.
_signal_came_in: Any = ctypes.PyDLL(None)["PyErr_SetInterrupt"]
_signal_came_in.argtypes = [ctypes.py_object] * 3
_signal_came_in.restype = None


class Interrupt(TimeoutError):  # noqa: N818 - it is no error
    """What the handler raises: no BaseException, and of the kind that is easily swallowed."""


class Interrupter:
    """Interrupts what runs in the ``with`` block, in the main thread, at its n-th point.

    Code of the file that makes it is not counted; everything called from it is, the standard
    library too, unless *only* is part of the path that a file must have. Afterwards *done* tells
    whether there was an n-th point.
    """

    def __init__(self, point: int, only: str = "") -> None:
        self._left = point
        self._only = only
        self._exempt = {__file__, sys._getframe(1).f_code.co_filename}
        self._armed = False
        self._before: Any = None
        self._callbacks: list[Any] = []
        self.done = False
        self.where = ""  # of the point, for a failing test

    def __enter__(self) -> Self:
        # hypothesis measures collections with one of Python, from which nothing can come out.
        self._callbacks = gc.callbacks[:]
        gc.callbacks.clear()
        self._before = signal.signal(signal.SIGINT, self._handler)
        sys._getframe().f_trace_opcodes = True  # 3.12 looks for one when tracing begins
        sys.settrace(self._begin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        sys.settrace(None)
        self._armed = False
        signal.signal(signal.SIGINT, self._before)
        gc.callbacks[:] = self._callbacks

    def _handler(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise Interrupt

    def _begin(self, frame: FrameType, _event: str, _argument: object) -> Any:
        path = frame.f_code.co_filename
        if self.done or path in self._exempt or self._only not in path:
            return None
        if self._is_it(frame):
            raise Interrupt
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._look

    def _look(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode" and not self.done and frame.f_lasti in _points(frame.f_code):
            if self._is_it(frame):
                self._armed = True
                return _signal_came_in  # Python calls it before the frame's next instruction
        return self._look

    def _is_it(self, frame: FrameType) -> bool:
        self._left -= 1
        if self._left >= 0:
            return False
        self.done = True
        self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
        return True


@functools.cache
def _points(code: CodeType) -> frozenset[int]:
    """Return the offsets of instructions that one may follow at whose end handlers run."""
    points = set()
    previous = None
    ends = {i.offset for i in dis.get_instructions(code) if i.opname.startswith(_MAY_RUN)}
    for instruction in dis.get_instructions(code):
        if previous is not None and instruction.offset in ends:
            points.add(previous)
        if instruction.opcode in (*dis.hasjrel, *dis.hasjabs) and instruction.argval in ends:
            points.add(instruction.offset)
        previous = instruction.offset
    return frozenset(points)
