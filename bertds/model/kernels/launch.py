"""Launches Triton kernels with less work for the host.

``function[grid](...)`` binds the arguments, works out what the kernel is specialized on, and builds
a key from that, in Python. BERT-large launches 216 kernels per micro batch, and the host can be the
limit. Here the compiled kernel is found by a short key and launched directly, as in Triton's
tutorial on fused softmax: ``compiled[grid](*arguments)``. Triton itself makes the first launch for
each key.

The key has all that Triton 3.6 and 3.7 specialize these kernels on: the types of tensors, the
values of numbers, and the constants. Triton has a separate kernel for a tensor whose address is not
a multiple of 16, so such a launch is always left to it.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import triton
from torch import Tensor

ALIGNMENT = 16
"""In bytes."""
_dtype_of = operator.attrgetter("dtype")
_address_of = operator.methodcaller("data_ptr")


def cdiv(number: int, size: int) -> int:
    """Return ``number / size``, rounded up. ``triton.cdiv`` takes the host ten times as long."""
    return -(-number // size)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of 2 that is at least ``number``, a positive integer."""
    return 1 << (number - 1).bit_length()


class Kernel:
    """A Triton kernel that costs the host little to launch.

    Args:
        function: its parameters are tensors, the ``varying`` integers, other numbers, and constants
            (``tl.constexpr``), in this order. Floats are annotated with their type.
        warps: of each program.
        varying: integers below 2**31 that differ from step to step. Triton would otherwise compile
            a kernel again the first time that one of them is 1 or a multiple of 16.
        registers: most that a thread may take, so that more programs run at a time; None = no limit
            but the hardware's.
    """

    def __init__(
        self,
        function: Callable[..., None],
        warps: int,
        varying: Sequence[str],
        registers: int | None = None,
    ) -> None:
        self.function = triton.jit(function, do_not_specialize=list(varying))
        self.options = {"num_warps": warps}
        if registers is not None:
            self.options["maxnreg"] = registers
        parameters = inspect.signature(function).parameters
        self._names = list(parameters)
        self._constants = [n for n, p in parameters.items() if "constexpr" in str(p.annotation)]
        self._varying = list(varying)
        self._tensors: int | None = None
        """How many of the arguments are tensors; known from the first launch."""
        self._compiled: dict[tuple[object, ...], Any] = {}

    def __call__(
        self, grid: tuple[int, int, int], *arguments: Tensor | float, **constants: object
    ) -> None:
        """Launch the kernel on the current stream.

        Args:
            grid: number of programs along each axis.
            arguments: all but the constants; tensors on the current device.
            constants: in the order of the parameters.
        """
        if self._tensors is None:
            self._tensors = self._count_tensors(arguments, constants)
        tensors = cast("tuple[Tensor, ...]", arguments[: self._tensors])
        numbers = arguments[self._tensors + len(self._varying) :]
        # A compiled kernel is loaded on one device.
        key = (tensors[0].get_device(), *map(_dtype_of, tensors), *numbers, *constants.values())
        aligned = functools.reduce(operator.or_, map(_address_of, tensors)) % ALIGNMENT == 0
        compiled = self._compiled.get(key) if aligned else None
        if compiled is not None:
            compiled[grid](*arguments, *constants.values())
            return
        compiled = self.function[grid](*arguments, **constants, **self.options)
        if aligned and compiled is not None:  # None: Triton's interpreter
            self._compiled[key] = compiled

    def _count_tensors(self, arguments: Sequence[object], constants: dict[str, object]) -> int:
        """Return the number of tensors, after a check of the order of the parameters."""
        count = sum(isinstance(argument, Tensor) for argument in arguments)
        expected = [
            *self._names[:count],
            *self._varying,
            *self._names[count + len(self._varying) : len(arguments)],
            *self._constants,
        ]
        in_order = all(isinstance(argument, Tensor) for argument in arguments[:count])
        if not in_order or expected != self._names or list(constants) != self._constants:
            raise TypeError(
                f"the parameters of {self._names} are not tensors, varying integers, other "
                "numbers and constants in this order"
            )
        return count


def kernel(
    warps: int, varying: Sequence[str] = (), registers: int | None = None
) -> Callable[[Callable[..., None]], Kernel]:
    """Return a decorator that makes a :class:`Kernel` of a function."""
    return lambda function: Kernel(function, warps, varying, registers)
