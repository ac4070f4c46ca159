"""The application's own enums and dataclasses, known by name once they are registered."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from typing import Any

from jmcache.serialization import _marking
from jmcache.serialization._kinds import Decoder, each
from jmcache.serialization._marking import Encoder, Marker, tagged
from jmcache.serialization._refusal import Refusal, type_name

_SIGIL = "@"  # no tag of ours begins with it, so no class can take the place of one


class Classes:
    """What can be written and read: our own kinds and the registered classes.

    Attributes:
        encoders: By exact type.
        decoders: By tag.

    Registering while others write and read is safe without a lock: each step is one operation on
    one dict, and the decoder is there before the first value can be written.
    """

    def __init__(self) -> None:
        self.encoders: dict[type, Encoder] = dict(_marking.ENCODERS)
        self.decoders: dict[str, Decoder] = dict(_marking.DECODERS)
        self._owners: dict[str, type] = {}  # by name

    def add(self, cls: type, name: str | None) -> None:
        """See RedisSerializer.register."""
        if not isinstance(cls, type):
            raise TypeError(f"register: a class, not an instance of {type_name(type(cls))}")
        if issubclass(cls, enum.Enum):
            make = _flag if issubclass(cls, enum.Flag) else _enum
        else:
            _check_dataclass(cls)
            make = _dataclass
        name = type_name(cls) if name is None else name
        if self._owners.setdefault(name, cls) is not cls:
            raise ValueError(
                f"register: the name {name!r} belongs to {type_name(self._owners[name])}"
            )
        tag = f"{_SIGIL}{name}"
        encoder, decoder = make(cls, tag)
        self.decoders[tag] = decoder
        self.encoders[cls] = encoder


def _enum(cls: Any, tag: str) -> tuple[Encoder, Decoder]:
    members = cls.__members__

    def encode(_walk: Marker, value: Any, _depth: int) -> tuple[Any, Any]:
        if members.get(value._name_) is not value:
            raise Refusal("unserializable", cls, "not one of the named members")
        return value._name_, tag

    return encode, each(members.__getitem__)


def _flag(cls: Any, tag: str) -> tuple[Encoder, Decoder]:
    members = cls.__members__

    def decode(payload: Any) -> Any:
        if type(payload) is not list:
            raise TypeError("not a list")
        bits = 0
        for name in payload:
            bits |= members[name]._value_
        return cls(bits)

    def encode(_walk: Marker, value: Any, _depth: int) -> tuple[Any, Any]:
        names = []
        missing = bits = value._value_
        for name, part in members.items():
            if part._value_ & bits == part._value_ and part._value_ & missing:
                names.append(name)
                missing &= ~part._value_
        if decode(names) is not value:
            raise Refusal("unserializable", cls, "has bits without a name")
        return names, tag

    return encode, each(decode)


def _dataclass(cls: type, tag: str) -> tuple[Encoder, Decoder]:
    names = tuple(field.name for field in dataclasses.fields(cls))

    def encode(walk: Marker, value: Any, depth: int) -> tuple[Any, Any]:
        fields = {}
        for name in names:
            try:
                fields[name] = getattr(value, name)
            except AttributeError:
                raise Refusal("unserializable", cls, "has no value here", f".{name}") from None
        payload, mark = walk.mark_dict(fields, depth)
        return payload, tagged(tag, mark)

    def decode(payload: Any) -> Any:
        if payload.keys() != set(names):
            raise ValueError("other fields")
        value = cls(**payload)
        for name, stored in payload.items():
            kept = getattr(value, name)
            if kept is not stored and (type(kept) is not type(stored) or kept != stored):
                raise ValueError("its constructor changes what it is given")
        return value

    return encode, each(decode)


def _check_dataclass(cls: type) -> None:
    name = type_name(cls)
    if "__dataclass_fields__" not in cls.__dict__:
        raise TypeError(f"register: {name} is neither an Enum nor itself a dataclass")
    if issubclass(cls, tuple(_marking.ENCODERS)):
        raise TypeError(f"register: {name} is more than its fields: it is built on another type")
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if set(inspect.signature(cls).parameters) != fields:
        raise TypeError(
            f"register: the constructor of {name} has to take exactly its fields, so that it can "
            "be built again: no InitVar, no init=False"
        )
