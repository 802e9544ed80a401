"""What a task would lose in another process: the attributes of the task and its classes, and module variables.

What ``check=`` and ``setup=`` use is the world outside of the process, and is spared.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from celery import Task
from celery.local import Proxy

__all__ = ["ProcessState", "Used"]

_CONTAINERS = (list, dict, set, deque, bytearray)
_CODE = (FunctionType, property, staticmethod, classmethod)
_ATOMS = (int, float, str, bytes, type(None))

#: Larger states are not restored: that would take too long.
_LARGEST = 10_000

_ABSENT: Any = object()


class Used:
    """What functions use: what they name, are bound to, or close over, and all that it contains.

    >>> rows, other = [], []
    >>> used = Used(rows.append, None)
    >>> rows in used, other in used
    (True, False)
    """

    def __init__(self, *functions: Callable[..., Any] | None) -> None:
        self._objects: dict[int, Any] = {}
        self._globals: set[tuple[int, str]] = set()
        self._modules: set[int] = set()
        self._names: set[str] = set()
        spaces: list[Any] = []
        waiting: list[Any] = list(functions)
        while waiting and len(self._objects) <= _LARGEST:
            one = waiting.pop()
            if _is(one, (Proxy,)):
                one = one._get_current_object()  # a task that was defined before its app was used
            if not _is(one, _ATOMS) and one not in self:
                self._objects[id(one)] = one
                if _is(one, (ModuleType, type, Task)):
                    spaces.append(one)
                if _is(one, (ModuleType,)):
                    self._modules.add(id(vars(one)))
                waiting.extend(self._uses(one))
            if not waiting:  # a module, class or task is used through the names of its attributes
                for space in spaces:
                    named = (inspect.getattr_static(space, name, None) for name in self._names)
                    waiting.extend(value for value in named if not _is(value, _ATOMS) and value not in self)

    def __contains__(self, one: Any) -> bool:
        return id(one) in self._objects

    def has_global(self, module: dict[str, Any], name: str) -> bool:
        """Whether a global is named: by itself, or as an attribute of its module."""
        return (id(module), name) in self._globals or (id(module) in self._modules and name in self._names)

    def has_attribute(self, holder: object, name: str) -> bool:
        """Whether an attribute of a class, or of the task, is named."""
        return holder in self and name in self._names

    def _uses(self, one: Any) -> Iterable[Any]:
        if _is(one, (functools.partial,)):
            return (one.func, *one.args, *one.keywords.values())
        if _is(one, (MethodType,)):
            return (one.__self__, one.__func__)
        if _is(one, (BuiltinMethodType,)):
            return () if _is(one.__self__, (ModuleType,)) else (one.__self__,)
        if _is(one, (property,)):
            return (one.fget,)
        if _is(one, (FunctionType,)):
            return list(self._used(one)) if _is_own(one.__module__) else ()
        if _is(one, (*_CONTAINERS, tuple, frozenset)):
            return _items(one)
        attributes = _attributes(one)
        return () if attributes is None else (*attributes.values(), *_members(type(one)))

    def _used(self, function: FunctionType) -> Iterator[Any]:
        module, names = function.__globals__, _names(function.__code__)
        self._names |= names
        self._globals |= {(id(module), name) for name in names if name in module}
        yield from (module[name] for name in names if name in module)
        yield from function.__defaults__ or ()
        yield from _cells(function)


class ProcessState:
    """The state of a process, to be restored.

    Args:
        spared: what is left alone.
        objects: whether the attributes of the program's own objects are part of the state.

    >>> rows = [1]
    >>> state = ProcessState(Used(), objects=True)
    >>> state.keep({"rows": rows})
    >>> rows.append(2)
    >>> state.restore()
    >>> rows
    [1]
    """

    def __init__(self, spared: Used, *, objects: bool) -> None:
        self._spared = spared
        self._objects = objects
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._seen: dict[int, Any] = {}
        self._bindings: list[tuple[Any, str, Any]] = []

    def keep_task(self, task: Any) -> None:
        """Keep the attributes of a task and of its own classes."""
        own = vars(task)
        self._contents[id(own)] = (own, dict(own))
        for name, value in own.items():
            if not self._spared.has_attribute(task, name):
                self.keep(value)
        for kind in _own_classes(task):
            for name, value in list(vars(kind).items()):
                is_code = name.startswith("__") or _is(value, _CODE)
                if not is_code and not self._spared.has_attribute(kind, name):
                    self._bindings.append((kind, name, value))
                    self.keep(value)

    def keep_variables(self, task: Any) -> None:
        """Keep the module variables that the task's functions name, if they hold containers or are assigned.

        Also the default values and the attributes of these functions.
        """
        for function in _functions_of(task):
            module, assigned = function.__globals__, _assigned(function.__code__)
            self.keep((function.__defaults__, function.__kwdefaults__, vars(function)))
            for name in _names(function.__code__):
                value = module.get(name, _ABSENT)
                is_kept = name in assigned or _is(value, _CONTAINERS)
                if is_kept and value not in self._spared and not self._spared.has_global(module, name):
                    self._bindings.append((module, name, value))
                    self.keep(value)

    def keep(self, value: Any) -> None:
        """Keep the content of a value, and of all that it contains."""
        waiting = [value]
        while waiting and len(self._seen) + len(waiting) <= _LARGEST:
            one = waiting.pop()
            if _is(one, _ATOMS) or id(one) in self._seen or one in self._spared:
                continue
            self._seen[id(one)] = one
            if _is(one, _CONTAINERS):
                if len(one) <= _LARGEST:
                    self._contents[id(one)] = (one, one.copy())
                    waiting.extend(item for item in _items(one) if type(item) not in _ATOMS)
            elif _is(one, (tuple,)):
                waiting.extend(one)
            elif self._objects and (attributes := _attributes(one)) is not None:
                self._contents[id(one)] = (attributes, attributes.copy())
                waiting.extend(attributes.values())

    def restore(self) -> None:
        """Restore all that was kept; the objects stay the same ones."""
        for holder, name, value in self._bindings:
            _bind(holder, name, value)
        for one, content in self._contents.values():
            if isinstance(one, (list, bytearray)):
                one[:] = content
            else:
                one.clear()
                one.extend(content) if isinstance(one, deque) else one.update(content)


def _bind(holder: Any, name: str, value: Any) -> None:
    """Set or delete a name of a class or module, if it has changed."""
    is_class = isinstance(holder, type)
    if (vars(holder) if is_class else holder).get(name, _ABSENT) is value:
        return
    if is_class:
        setattr(holder, name, value)
    elif value is _ABSENT:
        del holder[name]
    else:
        holder[name] = value


def _items(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _cells(function: FunctionType) -> Iterator[Any]:
    """Yield the values of a function's variables from the functions around it."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _members(kind: type) -> Iterator[Any]:
    """Yield the functions of a class and its bases, if they are the program's own."""
    for one in kind.__mro__:
        if _is_own(one.__module__):
            yield from (value for value in vars(one).values() if isinstance(value, (FunctionType, property)))


def _own_classes(task: Any) -> Iterator[type]:
    """Yield the classes of a task that are neither Celery's nor of this package."""
    theirs = ("celery", "celery_continuations", "typing", "builtins")
    return (one for one in type(task).__mro__ if str(one.__module__).partition(".")[0] not in theirs)


def _functions_of(task: Any) -> list[FunctionType]:
    """Return the functions of a task, and those of the same module that they name."""
    run = inspect.unwrap(task.run)
    own = (value for kind in _own_classes(task) for value in vars(kind).values() if isinstance(value, FunctionType))
    waiting: list[Any] = [getattr(run, "__func__", run), *map(inspect.unwrap, own)]
    found: dict[int, FunctionType] = {}
    while waiting:
        one = waiting.pop()
        if _is(one, (FunctionType,)) and id(one) not in found:
            found[id(one)] = one
            named = [*(one.__globals__.get(name) for name in _names(one.__code__)), *_cells(one)]
            waiting.extend(
                other for other in named if _is(other, (FunctionType,)) and other.__module__ == one.__module__
            )
    return list(found.values())


@cache
def _names(code: CodeType) -> frozenset[str]:
    """Return the names of globals and attributes in a function, and in those inside it."""
    inner = (_names(one) for one in code.co_consts if isinstance(one, CodeType))
    return frozenset(code.co_names).union(*inner)


@cache
def _assigned(code: CodeType) -> frozenset[str]:
    """Return the globals that a function, or one inside it, assigns."""
    here = (one.argval for one in dis.get_instructions(code) if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"))
    inner = (_assigned(one) for one in code.co_consts if isinstance(one, CodeType))
    return frozenset(here).union(*inner)


def _is(one: object, kinds: tuple[type, ...]) -> bool:
    """Like isinstance, but without a look at ``__class__``, where a proxy without an object would raise."""
    return issubclass(type(one), kinds)


def _attributes(one: object) -> dict[str, Any] | None:
    """Return the attributes of an instance of a class of the program, except of its tasks."""
    if not _is_own(type(one).__module__) or _is(one, (type, Task)):
        return None
    try:
        found: dict[str, Any] = object.__getattribute__(one, "__dict__")
    except AttributeError:
        return None
    return found


@cache
def _is_own(module: str | None) -> bool:
    """Whether a module belongs to the program: not to Python, an installed package, or this one."""
    if (module or "").partition(".")[0] == "celery_continuations":
        return False
    found = sys.modules.get(module or "")
    file = getattr(found, "__file__", None)
    if file is None:
        return getattr(found, "__spec__", None) is None  # code that was typed or executed, not a built-in module
    paths = sysconfig.get_paths()
    return not file.startswith(tuple(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")))
