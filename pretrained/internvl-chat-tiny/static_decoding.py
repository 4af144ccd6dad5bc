"""Decoding one token a row with everything at fixed addresses, so that a step can be recorded.

A step of an eager language model is thousands of kernels, each started by Python; on a GPU the
starting takes longer than the work. Recorded as a CUDA graph, a step is started at once. A graph
is of one number of rows and one number of places (``B``, ``L``): both are rounded up to a few
sizes. The first step of a size runs eagerly (what libraries prepare at their first call, cannot
be recorded), the second is recorded, all others are replayed.

Shapes: ``B`` rows, ``T`` tokens of a prompt, ``L`` places of a row, ``G`` key and value heads,
``d`` their width, ``V`` the vocabulary's size.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .static_cache import (
    MASKED,
    USED,
    KeyValueStore,
    StepCache,
    attention_of_steps,
    has_used_attention,
    masked_places,
    used_places,
)

logger = logging.getLogger(__name__)

MAX_ROWS = 64
"""More rows at once are decoded without: there the arithmetic takes longer than its starting."""

_MAX_RECORDED = 16
_LEAST_PLACES = 256
_KEPT_ELEMENTS = 1 << 29
"""Keys and values of a batch that is over are kept for the next up to here, 1 GiB in bf16, or
four times what that needs."""

CAPTURE_LOCK = threading.RLock()
"""Held while a step is recorded, and by who draws random numbers meanwhile: the generator of
random numbers is every thread's, and cannot be used by two while one of them records."""

_DRAWING: set[object] = set()


@contextmanager
def drawing() -> Iterator[None]:
    """Nothing is recorded meanwhile: for loops that draw random numbers without the lock."""
    mark = object()
    with CAPTURE_LOCK:
        _DRAWING.add(mark)
    try:
        yield
    finally:
        with CAPTURE_LOCK:
            _DRAWING.remove(mark)


def round_rows(rows: int) -> int:
    """1, 2, 4, 8, 12, 16, ...: so many rows a step is made for."""
    return 1 << (rows - 1).bit_length() if rows <= 4 else -(-rows // 4) * 4


def round_places(tokens: int) -> int:
    """Up to a quarter more than ``tokens``, and a multiple of 256."""
    step = max(_LEAST_PLACES, (1 << (tokens.bit_length() - 1)) // 4)
    return -(-tokens // step) * step


class Recorder(Protocol):
    """What records a step: CUDA graphs, or what tests put there."""

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        """Run a step eagerly, as it will be recorded."""

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record a step without running it; what is returned runs it, into one and the same
        tensor."""

    def forget(self) -> None:
        """All that was recorded is gone."""


class CudaRecorder:
    """Records CUDA graphs, which share their memory: one at a time runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        """See :class:`Recorder`."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            result = step()
        current.wait_stream(self._stream)
        return result

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        # Other threads of a server go on with what they do on the GPU.
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        collects = gc.isenabled()
        gc.disable()  # what it frees, a graph for one, may not be freed during a recording
        is_recorded = False
        try:
            with torch.cuda.device(self._device), recording:
                result = step()
            is_recorded = True
        finally:
            if not is_recorded:  # whatever the reason, an interrupt from the keyboard too
                self._clear_up(graph, current)
            if collects:
                gc.enable()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def forget(self) -> None:
        """See :class:`Recorder`; memory whose last graph is gone takes no other."""
        self._pool = torch.cuda.graph_pool_handle()

    def _clear_up(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        """After a recording that failed, everything outside goes on as if there had been none.

        Where CUDA has given a recording up, PyTorch cannot end it, and up to 2.13 leaves the
        stream, the allocator and (up to 2.11) the generator of random numbers as they are during
        one, for good: see ``CUDAGraph::capture_end``, aten/src/ATen/cuda/CUDAGraph.cpp.

        Args:
            stream: the current one before.
        """
        with torch.cuda.device(self._device):
            torch.cuda.set_stream(stream)
            graph.reset()  # all that PyTorch itself clears up
            self._end_allocation()
            renew_generator(self._device)
        self.forget()

    def _end_allocation(self) -> None:
        """Otherwise what several streams have used would never be free again, and cached memory
        not be given back, neither by ``empty_cache`` nor where a prompt needs it."""
        index = torch.cuda.current_device()
        former: Any = getattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", None)
        try:  # which is its name up to PyTorch 2.8
            getattr(torch._C, "_cuda_endAllocateToPool", former)(index, self._pool)
        except RuntimeError:
            return  # PyTorch has: the recording was ended, or had not begun
        torch._C._cuda_releasePool(index, self._pool)


def renew_generator(device: torch.device) -> None:
    """The default generator of random numbers of a GPU works again, and goes on where it was.

    Its state is put in the place of itself by a copy, of seed and offset only: up to PyTorch 2.11
    a recording that could not be ended leaves the state saying that one is under way, and then
    whoever draws is refused ("Offset increment outside graph capture encountered unexpectedly").
    Graphs recorded before keep the state that they know; as they draw nothing, they do not ask it.

    A state for recordings only, put in before each and taken out after, would be lost with what
    other threads have drawn or seeded meanwhile: they share the generator.
    """
    generator = torch.cuda.default_generators[
        torch.cuda.current_device() if device.index is None else device.index
    ]
    generator.graphsafe_set_state(generator.clone_state())


def recorder_of(device: torch.device) -> Recorder | None:
    """CUDA graphs on a GPU; None elsewhere, where every step runs eagerly."""
    return CudaRecorder(device) if device.type == "cuda" else None


class StaticDecoder:
    """Rows of one language model that are continued token by token.

    Between answers it keeps its memory and what it recorded; :meth:`release` gives both back.

    Args:
        recorder_of: what records on a device; None runs every step eagerly, to the same results.
    """

    def __init__(
        self, recorder_of: Callable[[torch.device], Recorder | None] = recorder_of
    ) -> None:
        self._recorder_of = recorder_of
        self._lock = threading.Lock()
        self._recorder: Recorder | None = None
        self._device: torch.device | None = None
        self._is_paused = False  # for this answer: there was no memory to record with
        self._store = KeyValueStore()
        self._recorded: OrderedDict[tuple[int, int], Callable[[], Tensor] | None] = OrderedDict()
        self._stamp: int | None = None
        self._heads: list[tuple[int, int]] = []  # (G, d) of keys and values of each layer in turn
        self._kernel = MASKED
        self._cut = (0, 0)
        self._lengths: list[int] = []
        self._slots: list[int] = []  # where in the cut each row stands
        self.num_recorded = 0
        """Steps recorded so far."""

    def __reduce__(self) -> tuple[type[StaticDecoder], tuple[()]]:
        """A copy, with a model's, begins anew: what is recorded is of these weights."""
        return type(self), ()

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether it is free; then it is nobody else's until the end.

        Another thread, or a callback, may ask the same model meanwhile: it answers step by step.
        """
        is_free = self._lock.acquire(blocking=False)
        try:
            yield is_free
        finally:
            if is_free:
                self._lock.release()

    @property
    def num_bytes(self) -> int:
        """Of the keys and values held."""
        return self._store.num_bytes

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row that the model has read."""
        return list(self._lengths)

    def release(self) -> None:
        """Give back all memory; the rows are lost."""
        self._forget()
        self._store.release()
        self._cut, self._lengths, self._slots, self._heads = (0, 0), [], [], []
        self._stamp = None

    def _forget(self) -> None:
        self._recorded.clear()
        if self._recorder is not None:
            self._recorder.forget()

    # ------------------------------------------------------------------ rows

    @torch.no_grad()
    def begin(
        self, model: nn.Module, layers: Iterable[tuple[Tensor, Tensor]], pads: Sequence[int]
    ) -> None:
        """Take prompts that the model has read, in the place of the rows so far.

        Args:
            model: the language model.
            layers: keys and values of each layer, (B, G, T, d). Taken one by one, so that the
                caller can let each go when the next is asked for.
            pads: of each row, how many of the T are padding, on the left.
        """
        self._lengths, self._slots, self._cut = [], [], (0, 0)
        self._is_paused = False
        stamp = weights_stamp(model)
        if self._stamp is not None and stamp != self._stamp:
            self.release()
        self._stamp = stamp
        self.join(layers, pads)

    @torch.no_grad()
    def join(self, layers: Iterable[tuple[Tensor, Tensor]], pads: Sequence[int]) -> None:
        """Take prompts as further rows; arguments as for :meth:`begin`."""
        with torch.inference_mode(False):
            slots: list[int] = []
            for number, pair in enumerate(layers):
                if not slots:
                    slots = self._take_slots([pair[0].shape[2] - pad for pad in pads], pair[0])
                    aligned = _Aligned(pads, pair[0])
                for part, new in enumerate(pair, start=2 * number):
                    if part == len(self._heads):
                        self._heads.append((new.shape[1], new.shape[3]))
                        self._make_room(part, new)
                    self._put(part, slots, aligned(new))
            self._tell_device()

    def keep(self, places: Sequence[int]) -> None:
        """Only these rows go on, in this order.

        They move when they fill a quarter of the slots: a step of a few slots more takes as long,
        the moving as long as some steps.
        """
        self._lengths = [self._lengths[place] for place in places]
        self._slots = [self._slots[place] for place in places]
        if 4 * round_rows(len(places)) <= self._cut[0]:
            self._move()
        self._tell_device()

    def _take_slots(self, lengths: list[int], like: Tensor) -> list[int]:
        """Where in the cut rows of such lengths go; makes a larger cut if they do not fit."""
        if not self._lengths and self._is_too_large(lengths):
            self._store.release()
            self._forget()
            self._heads = []
        if not self._heads:
            self._prepare(like)
        free = [slot for slot in range(self._cut[0]) if slot not in self._slots]
        most = max(*self._lengths, *lengths, 0)
        if len(free) < len(lengths) or most >= self._cut[1]:
            self._move(len(lengths), most)
            free = list(range(len(self._lengths), self._cut[0]))
        slots = free[: len(lengths)]
        self._lengths += lengths
        self._slots += slots
        return slots

    def _is_too_large(self, lengths: list[int]) -> bool:
        """Whether much more memory is held than such rows need: a large batch was before them."""
        size = round_rows(len(lengths)) * round_places(max(lengths) + 1)
        wanted = size * sum(heads * width for heads, width in self._heads)
        return self._store.num_elements > max(4 * wanted, _KEPT_ELEMENTS)

    def _prepare(self, like: Tensor) -> None:
        """For the first prompt, or the first after :meth:`release`."""
        device = like.device
        if self._recorder is None or device != self._device:
            self._recorder, self._device = self._recorder_of(device), device
        used = has_used_attention(like.dtype, device, like.shape[-1])
        self._kernel = USED if used else MASKED
        self._tokens = torch.zeros(MAX_ROWS, dtype=torch.long, device=device)
        self._lengths_of_slots = torch.zeros(MAX_ROWS, dtype=torch.int32, device=device)
        self._is_row = torch.zeros(MAX_ROWS, dtype=torch.int32, device=device)

    @torch.no_grad()
    def _move(self, num_more: int = 0, longest: int = 0) -> None:
        """Cut anew for these rows and ``num_more``; these are the first then.

        Args:
            longest: tokens of the longest of those to come.
        """
        with torch.inference_mode(False):
            old, slots = self._cut, self._slots
            longest = max(*self._lengths, longest, 0)
            self._cut = round_rows(len(slots) + num_more), round_places(longest + 1)
            self._slots = list(range(len(slots)))
            for number, heads in enumerate(self._heads):
                if slots:
                    kept = self._store.cut(number, *old, heads)
                    kept = kept[slots, : max(self._lengths)]
                    self._make_room(number, kept)
                    self._put(number, self._slots, kept)
                else:
                    self._make_room(number)

    def _make_room(self, number: int, like: Tensor | None = None) -> None:
        heads, width = self._heads[number]
        if self._store.ensure(number, self._cut[0] * self._cut[1] * heads * width, like):
            self._forget()  # they read at the former address

    def _put(self, number: int, slots: list[int], rows: Tensor) -> None:
        """Rows (B, T, G, d) into their slots."""
        view = self._store.cut(number, *self._cut, self._heads[number])
        is_one = slots == list(range(slots[0], slots[0] + len(slots)))
        index = slice(slots[0], slots[0] + len(slots)) if is_one else slots
        view[index, : rows.shape[1]] = rows
        if self._kernel == MASKED:
            # Places not in use are read too: what an answer before left there, infinities among
            # it, must not come through.
            view[index, rows.shape[1] :] = 0

    def _tell_device(self) -> None:
        """Which slots are rows, and their lengths."""
        with torch.inference_mode(False):
            told = torch.zeros(2, MAX_ROWS, dtype=torch.int32)
            told[0, self._slots] = torch.tensor(self._lengths, dtype=torch.int32)
            told[1, self._slots] = 1
            self._lengths_of_slots.copy_(told[0])
            self._is_row.copy_(told[1])
            self._is_in_order = self._slots == list(range(len(self._slots)))
            self._index = torch.tensor(self._slots, device=self._tokens.device)

    # ------------------------------------------------------------------ steps

    @property
    def is_full(self) -> bool:
        """Whether the rows have to move before the next step."""
        return max(self._lengths) >= self._cut[1]

    @torch.no_grad()
    def step(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Let the model read one token more of every row.

        Args:
            model: as for :meth:`begin`.
            tokens: (B,).

        Returns:
            (B, V) logits of the next tokens, valid until the next step.
        """
        with torch.inference_mode(False):
            if self.is_full:
                self._move()
                self._tell_device()
            rows = len(self._lengths)
            if self._is_in_order:
                self._tokens[:rows].copy_(tokens)
            else:
                self._tokens[self._index] = tokens.to(self._tokens.device)
            logits = self._run_or_replay(model)
            self._lengths = [length + 1 for length in self._lengths]
            return logits[:rows] if self._is_in_order else logits[self._index]

    def _run_or_replay(self, model: nn.Module) -> Tensor:
        key = self._cut
        if self._recorder is None or self._is_paused:
            return self._run(model)
        if key not in self._recorded:
            while len(self._recorded) >= _MAX_RECORDED:
                self._recorded.popitem(last=False)
                self._leave_empty_pool()
            self._recorded[key] = None
            with attention_of_steps(model, self._kernel):
                return self._recorder.warm_up(lambda: self._run_step(model))
        self._recorded.move_to_end(key)
        replay = self._recorded[key]
        if replay is None:
            replay = self._record(model, key)
        return self._run(model) if replay is None else replay()

    def _leave_empty_pool(self) -> None:
        """No graph can be recorded into the memory of graphs that are all gone."""
        if self._recorder is not None and not any(self._recorded.values()):
            self._recorder.forget()

    def _run(self, model: nn.Module) -> Tensor:
        with attention_of_steps(model, self._kernel):
            return self._run_step(model)

    def _record(self, model: nn.Module, key: tuple[int, int]) -> Callable[[], Tensor] | None:
        """None where it cannot be: now, in this answer, or ever."""
        assert self._recorder is not None
        try:
            with CAPTURE_LOCK, attention_of_steps(model, self._kernel):
                if _DRAWING:
                    return None
                replay = self._recorder.record(lambda: self._run_step(model))
        except RuntimeError as err:
            if _is_out_of_memory(err):
                logger.warning("no memory to record steps with: %s", err)
                self._is_paused = True
                self._leave_empty_pool()
                return None
            # CUDA's: something in the model waits for the GPU
            logger.warning("steps are not recorded, and run as before: %s", err)
            self._recorder = None
            self._recorded.clear()
            return None
        self._recorded[key] = replay
        self.num_recorded += 1
        return replay

    def _run_step(self, model: nn.Module) -> Tensor:
        """(B, V), with rows up to a step's size; adds one to the lengths."""
        rows, places = self._cut
        lengths = self._lengths_of_slots[:rows]
        used = lengths + 1
        positions = lengths.clamp(max=places - 1).long()
        row_numbers = torch.arange(rows, device=lengths.device)
        views = [
            self._store.cut(number, rows, places, heads) for number, heads in enumerate(self._heads)
        ]
        pairs = list(zip(views[::2], views[1::2], strict=True))
        mask = (used_places if self._kernel == USED else masked_places)(used, places)
        output = model(
            input_ids=self._tokens[:rows, None],
            attention_mask=mask,
            position_ids=positions[:, None],
            past_key_values=StepCache(pairs, row_numbers * places + positions),
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        lengths.add_(self._is_row[:rows])
        logits: Tensor = output.logits[:, -1]
        return logits


def _is_out_of_memory(err: RuntimeError) -> bool:
    """PyTorch says it in a class of its own; CUDA and cuBLAS, of what they take themselves, in
    words."""
    said = str(err)
    return isinstance(err, torch.OutOfMemoryError) or any(
        word in said for word in ("out of memory", "STATUS_ALLOC_FAILED")
    )


class _Aligned:
    """Prompts padded on the left -> rows that begin at place 0.

    Args:
        pads: of each row.
        like: (B, G, T, d).
    """

    def __init__(self, pads: Sequence[int], like: Tensor) -> None:
        longest, least = like.shape[2], min(pads)
        self._least = least
        self._rows: Tensor | None = None
        if max(pads) != least:
            taken = torch.arange(longest - least) + torch.tensor(list(pads))[:, None]
            # A shorter row's last token fills its end, behind its length.
            self._taken = taken.clamp(max=longest - 1).to(like.device)
            self._rows = torch.arange(len(pads), device=like.device)[:, None]

    def __call__(self, new: Tensor) -> Tensor:
        """(B, G, T, d) -> (B, T of the longest, G, d)."""
        turned = new.transpose(1, 2)
        return turned[:, self._least :] if self._rows is None else turned[self._rows, self._taken]


def weights_stamp(model: nn.Module) -> int:
    """Changes when a recorded step would read weights that are not the model's any more.

    That is: a tensor elsewhere, an adapter more or less, another scaling. New values in the same
    tensors are read by the same step.
    """
    tensors = [
        (tensor.data_ptr(), tensor.dtype) for tensor in (*model.parameters(), *model.buffers())
    ]
    modules = [
        (
            id(module),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            repr(getattr(module, "active_adapters", None)),
            repr(getattr(module, "merged_adapters", None)),
            repr(getattr(module, "disable_adapters", None)),
            repr(getattr(module, "scaling", None)),
        )
        for module in model.modules()
    ]
    return hash((tuple(tensors), tuple(modules), model.training))
