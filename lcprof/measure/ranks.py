"""Several processes that measure together, and one that measures alone.

Every decision that rests on a clock, on free memory or on an error is the same on all ranks: they
gather what each found over a group of their own on the hosts. A rank that fails where others wait
for it tells them through the store that they met at; there a thread of each listens, so that none
hangs in a call whose partner is gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, NoReturn, Protocol, TypeVar

import msgspec
from msgspec import Struct

from lcprof.errors import InputError
from lcprof.measure.board import ImpossibleError
from lcprof.measure.row import Status

T = TypeVar("T")

END, ENDED, GOING = "lcprof/end", "lcprof/ended", "lcprof/going"
LISTEN_S = 0.1
LAST_WORDS_S = 5.0
"""How long ranks wait for rank 0 to write what it has before they end."""
INTERRUPTED, GONE = 130, 3
MET_S = 300.0


class Ranks(Protocol):
    """This process among those that measure together."""

    rank: int
    size: int

    def all(self, value: T) -> list[T]:
        """Every rank's value, in their order."""

    def first(self, value: T) -> T:
        """That of rank 0, on every rank."""

    def wait(self) -> None:
        """Waits until every rank is here."""

    def queue(self) -> None:
        """Has the device wait until every rank's is here."""

    def group(self, ranks: int) -> Any:
        """The process group of the first so many ranks, None for all of them; every rank asks."""

    def fail(self, reason: str, code: int) -> NoReturn:
        """Ends every rank with one line, because this one cannot go on."""

    def last_words(self, say: Callable[[Status, str], None] | None) -> None:
        """What rank 0 does before it ends for another rank's failure, or for Ctrl-C: it leaves a
        row with the reason. Between points there is none to leave."""

    def close(self) -> None:
        """Leaves the others; every rank does."""


class Alone:
    """One process; it agrees with itself."""

    rank = 0
    size = 1

    def all(self, value: T) -> list[T]:
        return [value]

    def first(self, value: T) -> T:
        return value

    def wait(self) -> None:
        return

    def queue(self) -> None:
        return

    def group(self, ranks: int) -> Any:
        return None

    def fail(self, reason: str, code: int) -> NoReturn:
        raise ImpossibleError(reason)

    def last_words(self, say: Callable[[Status, str], None] | None) -> None:
        return

    def close(self) -> None:
        return


class End(Struct, frozen=True, kw_only=True):
    """Why all ranks end: who says so, and with which exit status."""

    rank: int
    reason: str
    code: int


class Place(Struct, frozen=True, kw_only=True):
    """Where a launcher has put this process: its rank among `size`, its place on this machine, and
    the store where they meet."""

    rank: int
    local_rank: int
    size: int
    host: str
    port: int


def place_of(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What torchrun says in the environment; None for a process alone. Raises InputError where it
    is no whole number, or a part is missing."""
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    numbers = {}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        text = environment.get(name, "")
        if not text.isdecimal():
            expected = "a whole number, as torchrun --nproc-per-node=N sets it"
            raise InputError.one(f"${name}", given=text or "nothing", expected=expected)
        numbers[name] = int(text)
    return Place(
        rank=numbers["RANK"],
        local_rank=numbers["LOCAL_RANK"],
        size=numbers["WORLD_SIZE"],
        host=environment.get("MASTER_ADDR", "127.0.0.1"),
        port=numbers["MASTER_PORT"],
    )


def check_gpus(place: Place) -> None:
    """Raises ImpossibleError where this machine has fewer GPUs than ranks."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", place.size))
    if count < here:
        raise ImpossibleError(
            f"{here} ranks here and {count} GPUs that PyTorch can use: torchrun "
            f"--nproc-per-node={max(1, count)}, or measure with --device cpu"
        )


class Together:
    """The ranks of a launcher, over torch.distributed: NCCL between GPUs, gloo between processors.

    From here on Ctrl-C ends all ranks, whatever each waits for.
    """

    def __init__(self, place: Place, kind: Literal["cuda", "cpu"]) -> None:
        import torch.distributed

        dist: Any = torch.distributed
        self.rank, self.size = place.rank, place.size
        self._dist = dist
        self._say: Callable[[Status, str], None] | None = None
        self._groups: dict[int, Any] = {}
        self._closed = False
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            init_method=f"tcp://{place.host}:{place.port}"
            if "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
            else "env://",
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=MET_S),
        )
        self._hosts = dist.new_group(backend="gloo", timeout=timedelta(seconds=MET_S))
        self._one: Any = None
        self._queues = kind == "cuda"
        self._store = dist.TCPStore(
            place.host, place.port, is_master=False, wait_for_workers=False,
            timeout=timedelta(seconds=30),
        )  # fmt: skip
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        # The thread ends the process; a call that hangs would never see the exception.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="lcprof-ranks", daemon=True)
        self._listener.start()

    def all(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        self._dist.all_gather_object(found, value, group=self._hosts)
        return found

    def first(self, value: T) -> T:
        said = [value]
        self._dist.broadcast_object_list(said, src=0, group=self._hosts)
        return said[0]

    def wait(self) -> None:
        self._dist.barrier(group=self._hosts)

    def queue(self) -> None:
        if not self._queues:
            return
        if self._one is None:
            import torch

            self._one = torch.zeros(1, device="cuda")
        self._dist.all_reduce(self._one)

    def group(self, ranks: int) -> Any:
        if ranks == self.size:
            return None
        if ranks not in self._groups:
            self._groups[ranks] = self._dist.new_group(list(range(ranks)))
        return self._groups[ranks]

    def fail(self, reason: str, code: int) -> NoReturn:
        self._tell(End(rank=self.rank, reason=reason, code=code))
        while True:
            time.sleep(1.0)

    def last_words(self, say: Callable[[Status, str], None] | None) -> None:
        self._say = say

    def _tell(self, end: End) -> None:
        self._store.compare_set(END, "", msgspec.json.encode(end).decode())

    def _listen(self) -> None:
        """Waits for the end that a rank or Ctrl-C brings, and ends this process."""
        try:
            while not self._store.check([END]):
                if self._closed:
                    return
                if select.select([self._woken], [], [], LISTEN_S)[0]:
                    os.read(self._woken, 1)
                    self._tell(End(rank=self.rank, reason="Ctrl-C", code=INTERRUPTED))
            end = msgspec.json.decode(self._store.get(END), type=End)
        except Exception:  # the store went with its process: there is nobody to measure with
            if self._closed:
                return
            os._exit(GONE)
        try:
            until = time.monotonic() + LAST_WORDS_S
            if self.rank == 0:
                self._finish(end)
                self._store.set(ENDED, "")
                # The store may be this process's, and the others still read it.
                while self._store.add(GOING, 0) < self.size - 1 and time.monotonic() < until:
                    time.sleep(LISTEN_S / 10)
            else:
                # Rank 0 writes first: launchers end all ranks as soon as one has ended.
                self._store.wait([ENDED], timedelta(seconds=LAST_WORDS_S))
                self._store.add(GOING, 1)
        finally:
            os._exit(end.code)

    def _finish(self, end: End) -> None:
        """The row and the line of an end, by rank 0."""
        interrupted = end.code == INTERRUPTED
        who = f"rank {end.rank}: " if end.rank and not interrupted else ""
        line = "interrupted" if interrupted else f"error: {who}{end.reason}"
        say = self._say
        if say is not None:
            try:
                say("interrupted" if interrupted else "failed", f"{who}{end.reason}")
                line += ": the record keeps what was measured; --resume goes on"
            except InputError as error:
                line = f"error: {error}"
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._closed = True
        # A thread within the store when the interpreter ends would abort the process.
        self._listener.join()
        self.wait()
        self._dist.destroy_process_group()
