"""Cards that are not there: within `cards(2)` tensors say that they lie on cuda:0 and cuda:1; the processor computes.

What CUDA refuses is refused: two devices in one operation (but a scalar or an index from the host), a card's tensor as
a numpy array. Counted are the places where the host waits for the card, and the bytes that tensors hold there; with
`limit` the memory runs out. What it cannot show is in docs/gpu.md: speed, kernels and their dtypes, memory within
kernels, compiled code, bitsandbytes' weights, several processes.

How: a tensor of a card is a subclass of torch.Tensor with the numbers in a tensor of the host (__torch_dispatch__); a
mode below catches what makes tensors, a mode above what Python asks by device.
"""

import contextlib
import importlib
import os
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST, BLOCK, TOTAL = torch.device("cpu"), 512, 80 * 2**30
aten = torch.ops.aten
COPYING = (aten._to_copy.default, aten.copy_.default, aten.copy.default)
BY_INDEX = tuple(
    getattr(aten, name).default if name.endswith("put_") or "put" in name else getattr(aten, name).Tensor
    for name in ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
)
# operations whose result the host must know before it goes on
WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "bool",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
# they look for CUDA's library when they are imported, so before there is a pretended one
EARLY = ("accelerate", "bitsandbytes", "peft", "sentence_transformers", "transformers.trainer")


class DevicesMixed(RuntimeError):
    """Tensors of several devices in one operation."""


class State:
    """Of the cards: how many, which is current, what was counted."""

    def __init__(self, n, project, limit, capability):
        self.capability = capability
        self.n, self.project, self.limit, self.current, self.to_host = n, project and str(project), limit, 0, False
        self.waits = Counter()  # {(what, "file:line" of the project): times}
        self.blocks, self.held, self.peak = {}, Counter(), Counter()  # {storage: [tensors, bytes]}, {card: bytes}

    def wait(self, what):
        frame, where = sys._getframe(1), None
        while frame and where is None:
            file = frame.f_code.co_filename
            if self.project and file.startswith(self.project) and os.path.basename(file) != "pretend_cuda.py":
                where = f"{os.path.relpath(file, self.project)}:{frame.f_lineno}"
            frame = frame.f_back
        self.waits[what, where] += 1

    def device(self, given):
        """A torch.device with an index, if it is a card's."""
        device = torch.device("cuda", given) if isinstance(given, int) else torch.device(given)
        if device.type != "cuda":
            return device
        index = self.current if device.index is None else device.index
        if index >= self.n:
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
        return torch.device("cuda", index)

    def index(self, given=None):
        return self.current if given is None else self.device(given).index


STATE = None


class Claim:
    """Counts a storage's bytes while one tensor at least uses it."""

    def __init__(self, storage, card):
        state = STATE
        self.state, self.key, self.card = state, storage._cdata, card
        if self.key not in state.blocks:
            size = (storage.nbytes() + BLOCK - 1) // BLOCK * BLOCK
            if state.limit is not None and state.held[card] + size > state.limit:
                self.state = None
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes on card {card}")
            state.blocks[self.key] = [0, size]
            state.held[card] += size
            state.peak[card] = max(state.peak[card], state.held[card])
        state.blocks[self.key][0] += 1

    def __del__(self):
        if self.state is None:
            return
        block = self.state.blocks[self.key]
        block[0] -= 1
        if block[0] == 0:
            self.state.held[self.card] -= self.state.blocks.pop(self.key)[1]


class OnCard(torch.Tensor):
    """A tensor of a card. numbers: the host's tensor with what it holds; card: its torch.device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers, card):
        layout = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset(), "dtype": numbers.dtype}
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, device=HOST, **layout)
        made.numbers, made.card = numbers, card
        made.claim = Claim(numbers.untyped_storage(), card.index)
        return made

    def __init__(self, numbers, card):
        pass

    @property
    def device(self):
        return self.card

    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def __repr__(self, **_):
        return f"{self.numbers!r} on {self.card}"

    def __format__(self, spec):
        return repr(self) if self.dim() else format(self.item(), spec)

    def untyped_storage(self):
        return self.numbers.untyped_storage()

    def data_ptr(self):
        return self.numbers.data_ptr()

    def __reduce_ex__(self, protocol):  # saved as what is read again with map_location="cpu"
        return self.numbers.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = OnCard(self.numbers.detach().clone(), self.card)
            if getattr(self, "_is_param", False):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            own = ("numbers", "card", "claim", "_is_param")
            copy.__dict__.update({name: value for name, value in self.__dict__.items() if name not in own})
            memo[id(self)] = copy
        return memo[id(self)]


def compute(func, args, kwargs):
    """An operation by the host's kernel on the numbers; its results are where CUDA would have them."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    of_cards = [x for x in tensors if isinstance(x, OnCard)]
    asked = None if kwargs.get("device") is None else STATE.device(kwargs["device"])
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if not of_cards and (asked is None or asked.type != "cuda"):
        return func(*args, **kwargs)
    if func.name() == "aten::_has_compatible_shallow_copy_type":
        return False
    where = destination(func, args, tensors, of_cards, asked)
    if of_cards and func in WAITING:
        STATE.wait(WAITING[func])
    if asked is not None:
        kwargs = {**kwargs, "device": HOST}
    if func in COPYING:
        kwargs.pop("non_blocking", None)
    before = {id(x.numbers if isinstance(x, OnCard) else x): x for x in tensors}
    args, kwargs = tree_map(lambda x: x.numbers if isinstance(x, OnCard) else x, (args, kwargs))

    def placed(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, OnCard):
            return x
        same = before.get(id(x))
        if same is not None and same.shape == x.shape:
            return same  # in place
        return OnCard(x, where) if where.type == "cuda" else x

    return tree_map(placed, func(*args, **kwargs))


def destination(func, args, tensors, of_cards, asked):
    """The device of an operation's results. DevicesMixed where CUDA would refuse it."""
    name = func.name()
    making = func in COPYING or "new_" in name or name.split(".")[0].endswith("_like")
    if asked == HOST and of_cards and making and not STATE.to_host:
        asked = None  # compiled code that means the tensor's own device, which it takes for the host
    if func in COPYING:
        where = asked or tensors[0].device
        if of_cards and where.type == "cpu":
            STATE.wait("copy to the host")
        return where
    if func in BY_INDEX:
        where, indices = tensors[0].device, [x for x in args[1] if isinstance(x, torch.Tensor)]
        for x in indices:
            if x.device.type == "cuda" and x.device != where:
                raise DevicesMixed(f"{name}: an index on {x.device} into a tensor on {where}")
            if where.type == "cuda" and x.dtype in (torch.bool, torch.uint8):
                STATE.wait("index by a mask")
        others = [x for x in tensors if not any(x is index for index in indices)]
    else:
        where, others = asked or of_cards[0].device, tensors
    for x in others if of_cards else ():
        if x.device != of_cards[0].device and (x.dim() or x.device.type == "cuda"):
            raise DevicesMixed(f"{name}: tensors on {of_cards[0].device} and on {x.device}, {tuple(x.shape)}")
    return where


class Below(TorchDispatchMode):
    """What makes tensors, without one of a card among its arguments."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Above(TorchFunctionMode):
    """What compiled code would decide by the device that it believes in."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, first = dict(kwargs or {}), args[0] if args else None
        if func is torch.device:
            return STATE.device(first) if len(args) == 1 and isinstance(first, int) else func(*args, **kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = STATE.device(kwargs["device"])
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            return tensor_of(func, *args, **kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return moved(func, first, args[1:], **kwargs)
        if func is torch.Tensor.is_pinned:
            return False
        if func is torch.Tensor.pin_memory:
            if isinstance(first, OnCard):
                raise RuntimeError("cannot pin a tensor of a card: only dense CPU tensors can be pinned")
            return first
        if isinstance(first, OnCard):
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError(f"can't convert {first.device} device type tensor to numpy. Use Tensor.cpu() first")
            if func is torch.Tensor.tolist:
                STATE.wait("tolist")
                return first.numbers.tolist()
            if func is torch.Tensor.__getitem__:
                parts = args[1] if isinstance(args[1], tuple) else (args[1],)
                if any(isinstance(part, (list, np.ndarray)) for part in parts):
                    STATE.wait("index by a list")
        return func(*args, **kwargs)


def moved(func, x, rest, device=None, dtype=None, copy=False, memory_format=None, **_):
    """Tensor.to, .cuda and .cpu."""
    if func is torch.Tensor.cpu:
        device = HOST
    elif func is torch.Tensor.cuda:
        device = STATE.device(rest[0] if rest else "cuda" if device is None else device)
    else:
        for value in rest:
            if isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif value is not None and not isinstance(value, bool):
                device = STATE.device(value)
    device, dtype = device or x.device, dtype or x.dtype
    if x.device == device and x.dtype == dtype and not copy:
        return x
    layout = {} if memory_format is None else {"memory_format": memory_format}
    STATE.to_host = True
    try:
        return aten._to_copy.default(x, dtype=dtype, device=device, **layout)
    finally:
        STATE.to_host = False


def tensor_of(make, data, *args, device=None, requires_grad=False, **kwargs):
    """torch.tensor, as_tensor and asarray, which copy to a device without asking a mode."""
    if isinstance(data, OnCard):
        where = data.device if device is None else device
        if make is torch.as_tensor and where == data.device and not args and not kwargs:
            return data
        data = data.numbers
    else:
        usual = data.device if isinstance(data, torch.Tensor) else torch.get_default_device()
        where = usual if device is None else device
        if isinstance(data, (list, tuple)) and any(isinstance(x, OnCard) for x in data):
            STATE.wait("a tensor of tensors")
            data = [x.item() if isinstance(x, torch.Tensor) else x for x in data]
    made = moved(torch.Tensor.to, make(data, *args, device=HOST, **kwargs), (STATE.device(where),))
    return made.requires_grad_() if requires_grad else made


def functions_of_torch_cuda(state):
    """{name: what stands for it} in torch.cuda."""
    clock = torch.zeros(16, dtype=torch.uint8)  # a generator's state
    about = SimpleNamespace(name="a pretended card", major=state.capability[0], minor=state.capability[1])
    about.total_memory, about.multi_processor_count, about.warp_size = TOTAL, 132, 32
    about.is_integrated, about.gcnArchName, about.uuid = 0, "", "0"

    def held(device=None):
        return state.held[state.index(device)]

    def peak(device=None):
        return state.peak[state.index(device)]

    def reset(device=None):
        state.peak[state.index(device)] = held(device)

    def choose(device):
        state.current = state.index(device)

    nothing = ("_lazy_init", "empty_cache", "ipc_collect", "manual_seed", "manual_seed_all", "set_rng_state")
    stream = SimpleNamespace(synchronize=lambda: None, is_capturing=lambda: False, device=torch.device("cuda", 0))
    return {
        **{name: lambda *_, **__: None for name in (*nothing, "set_rng_state_all")},
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: state.n,
        "current_device": lambda: state.current,
        "set_device": choose,
        "get_device_name": lambda *_: about.name,
        "get_device_properties": lambda *_: about,
        "get_device_capability": lambda *_: state.capability,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or state.capability >= (8, 0),
        "synchronize": lambda *_: state.wait("synchronize"),
        "current_stream": lambda *_: stream,
        "memory_allocated": held,
        "memory_reserved": held,
        "device_memory_used": held,
        "max_memory_allocated": peak,
        "max_memory_reserved": peak,
        "reset_peak_memory_stats": reset,
        "mem_get_info": lambda device=None: ((state.limit or TOTAL) - held(device), state.limit or TOTAL),
        "get_rng_state": lambda *_: clock,
        "get_rng_state_all": lambda: [clock] * state.n,
    }


@contextlib.contextmanager
def cards(n=1, project=None, limit=None, capability=(9, 0)):
    """CUDA with n cards of `limit` bytes each (None: no limit) within the block. Yields the State.

    project: the folder whose lines are named where the host waits; capability: 9.0 of an H100, 7.5 of a T4, ...
    """
    global STATE
    for name in EARLY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    state, usual = State(n, project, limit, capability), torch.autocast
    enabled, chosen = torch.is_autocast_enabled, torch.get_autocast_dtype

    class Autocast(usual):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    with contextlib.ExitStack() as stack:

        def put(owner, name, value):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        for name, stand_in in functions_of_torch_cuda(state).items():
            for module in (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.accelerator):
                if hasattr(module, name):
                    put(module, name, stand_in)
        put(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
        put(torch.accelerator, "get_memory_info", torch.cuda.mem_get_info)
        put(torch.accelerator, "current_device_index", lambda: state.current)
        put(torch.accelerator, "set_device_index", torch.cuda.set_device)
        put(torch.accelerator, "memory_stats", lambda *_: {"pretended": 1})
        for module in (torch, torch.amp, torch.amp.autocast_mode):
            put(module, "autocast", Autocast)
        put(torch, "is_autocast_enabled", lambda kind="cuda": enabled("cpu"))
        put(torch, "get_autocast_dtype", lambda kind="cuda": chosen("cpu"))
        swaps = torch.__future__
        stack.callback(
            swaps.set_swap_module_params_on_conversion, swaps.get_swap_module_params_on_conversion()
        )  # Module.to: the new tensor takes the parameter's place, and ties stay
        swaps.set_swap_module_params_on_conversion(True)
        before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")  # a mode is its thread's alone
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        stack.callback(
            os.environ.pop if before is None else os.environ.__setitem__,
            "HF_DEACTIVATE_ASYNC_LOAD",
            *([None] if before is None else [before]),
        )
        put(sys.modules[__name__], "STATE", state)
        with Above(), Below():
            yield state
