"""Programs that IREE runs: step functions of several sizes over device buffers, weights mapped from weights.bin.

Of the manifest: `program` is the compiled file, `steps` maps the tokens of a step to its function, `states` are the
tensors kept between steps, `parameters` says where each weight lies in the data of weights.bin, `device` is what runs
it ("local": this processor's threads, else a device as IREE names it), `flags` what /proc/cpuinfo must have.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.artifact import WEIGHTS, WEIGHTS_HEADER, read_weights_header
from slmopt.errors import ArtifactError, InputError
from slmopt.runtime.program import file_name

if TYPE_CHECKING:
    from slmopt.runtime.iree_session import IreeConversation

__all__ = ["SCOPE", "IreeProgram", "LoadedProgram", "StateType", "import_runtime", "open_device"]

LOCAL = "local"  # the device that is this processor
SCOPE = "model"  # of the parameters in the program
MAX_THREADS = 256  # as SLM_MAX_THREADS of slm.h
_DRIVERS = threading.Lock()  # the number of threads is a flag of the process, read when a driver is made


def import_runtime() -> Any:
    """The package iree.runtime; InputError says how to install it."""
    try:
        import iree.runtime
    except ImportError as error:
        package = "iree-base-runtime"
        raise InputError(f"running this artifact needs the package {package}: pip install 'slmopt[mlir]'") from error
    return iree.runtime


@dataclass(frozen=True)
class StateType:
    """A tensor that is kept between steps: sizes, and the element as numpy names it."""

    shape: tuple[int, ...]
    element: str


@dataclass(frozen=True)
class LoadedProgram:
    """The program on one device. `lock` is held around calls: conversations on one device take turns."""

    runtime: Any
    device: Any
    context: Any
    functions: Mapping[int, Any]
    lock: threading.Lock


class IreeProgram:
    """An artifact whose program IREE runs; loaded once for each number of threads that is asked for."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self._runtime = import_runtime()
        self._path = path
        self._file = path / file_name(manifest, "program", path)
        if not self._file.is_file():
            raise ArtifactError(f"{self._file} is missing: the artifact is not whole; compile the model again")
        try:
            self.vocab, self.context = int(manifest["vocab"]), int(manifest["context"])
            self.steps = {int(tokens): str(name) for tokens, name in manifest["steps"].items()}
            self.states = [StateType(tuple(item["shape"]), item["element"]) for item in manifest["states"]]
            self._parameters = {key: (int(at), int(size)) for key, (at, size) in manifest["parameters"].items()}
            self._device, self._flags = str(manifest["device"]), list(manifest["flags"])
            self._made_by = str(manifest["versions"]["iree-base-compiler"])
            weights_hash = str(manifest["hashes"][WEIGHTS])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"the manifest of {path} is damaged ({error}); compile the model again") from error
        if missing := sorted(set(self._flags) - _processor_flags()):
            raise ArtifactError(f"{path} was compiled for another processor: this one lacks {', '.join(missing)}")
        if read_weights_header(path) != weights_hash:
            raise ArtifactError(f"{path / WEIGHTS} belongs to another compilation than {self._file.name}")
        self._weights = _map_weights(path / WEIGHTS)
        for key, (offset, size) in self._parameters.items():
            if not 0 <= offset <= offset + size <= len(self._weights) - WEIGHTS_HEADER:
                raise ArtifactError(f"the manifest of {path} is damaged: @{key} does not lie in {WEIGHTS}")
        self._loaded: dict[tuple[int, int], LoadedProgram] = {}  # by process and threads
        self._lock = threading.Lock()
        self._load(self._threads(0 if self._device != LOCAL else 1))  # what is wrong with it shows here

    def converse(self, threads: int) -> IreeConversation:
        """A conversation computed by so many threads."""
        from slmopt.runtime.iree_session import IreeConversation

        if not 0 <= threads <= MAX_THREADS:
            raise InputError(f"{threads} threads; give 1 to {MAX_THREADS}, or 0 for one per usable core")
        count = self._threads(threads)
        return IreeConversation(self, self._load(count), count)

    def close(self) -> None:
        """Lets go of the program; what conversations use stays."""
        self._loaded.clear()

    def _threads(self, asked: int) -> int:
        """What computes; another device counts as one thread."""
        if self._device != LOCAL:
            return 1
        return asked or len(os.sched_getaffinity(0))

    def _load(self, threads: int) -> LoadedProgram:
        with self._lock:
            key = (os.getpid(), threads)  # after a fork, a device's threads stayed with the parent
            if key not in self._loaded:
                self._loaded[key] = self._load_on(open_device(self._device, threads))
            return self._loaded[key]

    def _load_on(self, device: Any) -> LoadedProgram:
        runtime = self._runtime
        instance = runtime.VmInstance()
        index = runtime.ParameterIndex()
        handle = runtime.FileHandle.wrap_memory(self._weights)
        for key, (offset, size) in self._parameters.items():
            index.add_from_file_handle(key, handle, size, WEIGHTS_HEADER + offset)
        modules = [runtime.create_hal_module(instance, device),
                   runtime.create_io_parameters_module(instance, index.create_provider(SCOPE))]  # fmt: skip
        try:
            program = runtime.VmModule.mmap(instance, str(self._file))
            context = runtime.VmContext(instance, [*modules, program])
            functions = {tokens: program.lookup_function(name) for tokens, name in self.steps.items()}
        except Exception as error:  # the bindings raise whatever the status code maps to
            here = version("iree-base-runtime")
            hint = "" if here == self._made_by else f"; it was compiled by IREE {self._made_by}, and {here} is here"
            raise ArtifactError(f"{self._file} cannot be loaded{hint}: {_first_line(error)}") from error
        if None in functions.values():
            raise ArtifactError(f"{self._file} lacks a function that the manifest names; compile the model again")
        return LoadedProgram(runtime, device, context, functions, threading.Lock())


def open_device(name: str, threads: int) -> Any:
    """A device: this processor with so many threads, or another as IREE names it. InputError where it is not there."""
    runtime = import_runtime()
    from iree.runtime._binding import create_hal_driver

    with _DRIVERS:
        try:
            if name != LOCAL:
                return _find_device(runtime, name)
            if threads == 1:
                return create_hal_driver("local-sync").create_default_device()
            runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
            return create_hal_driver("local-task").create_default_device()
        except Exception as error:
            kind = name.partition(":")[0]
            raise InputError(f"the device {name} cannot be used here: {_first_line(error)}; `slmopt targets` tells "
                             f"which package makes {kind} devices known") from error  # fmt: skip


def _find_device(runtime: Any, name: str) -> Any:
    """A device by its driver, and where that has several by number or by the driver's own path: vulkan://1."""
    driver, _, which = name.partition("://")
    if not which.isdecimal():
        return runtime.get_device(name)
    found = runtime.get_driver(driver).query_available_devices()
    if int(which) >= len(found):
        raise ValueError(f"there are {len(found)}, numbered from 0")
    return runtime.get_driver(driver).create_device(found[int(which)])


def _map_weights(file: Path) -> mmap.mmap:
    try:
        with open(file, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}); compile the model again") from error


def _processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return set(next(lines, "").partition(":")[2].split())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
