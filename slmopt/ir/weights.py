"""The weight store: lazy tensors by key, memory-mapped from files or derived from other keys when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.errors import IRError
from slmopt.ir.types import DType, QuantizedType, TensorType

if TYPE_CHECKING:
    import torch

__all__ = ["QuantizedTensor", "WeightSource", "WeightStore", "counted_parts", "watch_loads", "write_count"]

Watch = Callable[[str, Any], None]
_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watch_loads(watch: Watch) -> Iterator[None]:
    """Within the block, tell `watch` the key and the tensor of everything that is loaded from any store."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes [..., n, k] (int8, or uint8 where asymmetric), float16 scales and minimum [..., n, groups]."""

    type: QuantizedType
    codes: torch.Tensor
    scales: torch.Tensor
    minimum: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """The float32 tensor the codes stand for."""
        columns = self.codes.shape[-1]
        group = self.type.group or columns
        if columns and columns % group == 0:
            grouped = self.codes.float().reshape(*self.scales.shape, group)
            grouped *= self.scales.float().unsqueeze(-1)
            if self.minimum is not None:
                grouped += self.minimum.float().unsqueeze(-1)
            return grouped.reshape(self.codes.shape)
        scales = self.scales.float().repeat_interleave(group, -1)[..., :columns]
        values = self.codes.float() * scales
        if self.minimum is not None:
            values = values + self.minimum.float().repeat_interleave(group, -1)[..., :columns]
        return values


@dataclass(frozen=True)
class WeightSource:
    """How a tensor comes to be: `load` gives it, from `inputs` where it is derived from other keys.

    `load` takes one tensor per input and returns a torch tensor or a QuantizedTensor; where it has a true attribute
    `takes_stored`, its inputs come as `WeightStore.stored` gives them. It is called each time the
    weight is asked for and nothing is kept, so that peak memory stays near one weight. `description` says what was
    done, for people: `file model.safetensors`, `quantize to q4g32`. `held` is for what is small and slow to compute: it
    gives the result of an earlier `load`, for which no input is loaded again, or None.
    """

    type: TensorType
    description: str
    load: Callable[..., Any]
    inputs: tuple[str, ...] = ()
    held: Callable[[], Any] | None = None


def counted_parts(value: Any) -> list[torch.Tensor]:
    """The tensors of a stored weight of which torch counts how often they are written to."""
    parts = (value.codes, value.scales, value.minimum) if isinstance(value, QuantizedTensor) else (value,)
    return [part for part in parts if part is not None and hasattr(part, "is_inference") and not part.is_inference()]


def write_count(value: Any) -> tuple[int, ...]:
    """How often each tensor of a stored weight was written to; torch does not count writes through numpy."""
    return tuple(part._version for part in counted_parts(value))


class WeightStore:
    """Keys to lazy tensors. Keys are never redefined: a pass that changes a weight adds a key."""

    def __init__(self, parent: WeightStore | None = None) -> None:
        self._parent = parent
        self._own: dict[str, WeightSource] = {}

    def branch(self) -> WeightStore:
        """A store that sees everything here; what is added to it stays in it."""
        return WeightStore(self)

    def __contains__(self, key: str) -> bool:
        return key in self._own or (self._parent is not None and key in self._parent)

    def __iter__(self) -> Iterator[str]:
        if self._parent is not None:
            yield from self._parent
        yield from self._own

    def source(self, key: str) -> WeightSource:
        """Where `key` comes from; IRError where it is unknown."""
        if key in self._own:
            return self._own[key]
        if self._parent is None:
            raise IRError(f"no weight @{key} in the store")
        return self._parent.source(key)

    def type(self, key: str) -> TensorType:
        """The type of the stored tensor."""
        return self.source(key).type

    def add(self, key: str, source: WeightSource) -> str:
        """Define `key`; IRError where it is already defined or an input is missing."""
        if key in self:
            raise IRError(f"weight @{key} is already defined ({self.source(key).description}); use another key")
        for name in source.inputs:
            if name not in self:
                raise IRError(f"weight @{key} derives from @{name}, which is not in the store")
        self._own[key] = source
        return key

    def add_tensor(self, key: str, value: torch.Tensor, description: str = "in memory") -> str:
        """Define `key` as a tensor held in memory."""
        from slmopt.ir.torch_types import element_of

        held = value.detach()
        type = TensorType(element_of(held.dtype), tuple(held.shape))
        return self.add(key, WeightSource(type, description, lambda: held, held=lambda: held))

    def derive(
        self, key: str, inputs: tuple[str, ...], type: TensorType, description: str, compute: Callable[..., Any]
    ) -> str:
        """Define `key` as `compute(*tensors of inputs)`; computed when asked for, one weight at a time.

        A `compute` that has a method `held` keeps what it computed; see WeightSource.

        Asking twice for the same derivation under the same key is no error: aliased users share the result.
        """
        if key in self:
            known = self.source(key)
            if (known.inputs, known.type, known.description) == (inputs, type, description):
                return key
        return self.add(key, WeightSource(type, description, compute, inputs, getattr(compute, "held", None)))

    def snapshot(self) -> Mapping[str, WeightSource]:
        """What was added here, for `restore`."""
        return dict(self._own)

    def restore(self, snapshot: Mapping[str, WeightSource]) -> None:
        """Forget what was added since `snapshot` was taken."""
        self._own = dict(snapshot)

    def fresh_key(self, hint: str) -> str:
        """`hint` where no such key exists, else `hint.2`, `hint.3`, ..."""
        key, count = hint, 1
        while key in self:
            count += 1
            key = f"{hint}.{count}"
        return key

    def load(self, key: str) -> Any:
        """The tensor: a torch tensor or a QuantizedTensor, in its declared type."""
        from slmopt.ir.torch_types import torch_dtype

        value, type = self.stored(key), self.type(key)
        if isinstance(value, QuantizedTensor) or not isinstance(type.element, DType):
            return value
        return value.to(torch_dtype(type.element))

    def stored(self, key: str) -> Any:
        """As `load`, but numbers may be in the narrower type a file has them in: to be widened where they are used,
        part by part, for a large tensor. Checked against the declared shape."""
        source = self.source(key)
        value = source.held() if source.held is not None else None
        if value is None:
            value = self._compute(key, source)
        shape = tuple(value.codes.shape if isinstance(value, QuantizedTensor) else value.shape)
        if shape != source.type.shape:
            raise IRError(f"weight @{key} ({source.description}) has shape {list(shape)}, expected {source.type}")
        watch = _WATCH.get()
        if watch is not None:
            watch(key, value)
        return value

    def _compute(self, key: str, source: WeightSource) -> Any:
        give = self.stored if getattr(source.load, "takes_stored", False) else self.load
        inputs = [give(name) for name in source.inputs]
        versions = [write_count(value) for value in inputs]
        found = source.load(*inputs)
        for name, value, version in zip(source.inputs, inputs, versions, strict=True):
            if write_count(value) != version:
                raise IRError(f"weight @{key} ({source.description}) is computed by writing into the tensor of @{name}:"
                              " compute a new one, as w.abs() does and w.abs_() does not")  # fmt: skip
        return found

    def float(self, key: str) -> torch.Tensor:
        """The tensor as float32 numbers, dequantized where it is quantized; integer tensors stay as they are."""
        value = self.load(key)
        if isinstance(value, QuantizedTensor):
            return value.dequantize()
        tensor: torch.Tensor = value
        return tensor.float() if tensor.is_floating_point() else tensor
