"""How the processes of a run find each other, also after ``torchrun`` has started them again.

PyTorch 2.14's ``torchrun`` keeps one store for all starts. In it a process finds the addresses of one that is dead,
and waits for it or fails. So each start has a part of the store of its own, under a name on which its processes agree.
"""

import json
import time
from uuid import uuid4

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from speechssl.errors import TrainingError

_LONGEST_SECONDS = 1800.0  # between the first process and the last
_PAUSE_SECONDS = 0.05


def fresh_store() -> tuple[Store, int, int]:
    """Join the processes that the environment announces.

    Returns:
        A store that this start of them shares, this process's number, and how many there are.

    Raises:
        TrainingError: half an hour has passed, and not all are there.
    """
    store, rank, count = next(iter(rendezvous("env://")))
    return PrefixStore(agree_on_name(store, rank, count), store), rank, count


def agree_on_name(store: Store, rank: int, count: int) -> str:
    """Return a name that the living processes share, whatever those of earlier starts have left in the store.

    Each one signs with a number that it has drawn. The first one collects the signatures until all have taken its own
    for the name, which they do once they find their signature in its list.
    """
    own = uuid4().hex
    signed, taken = ([f"speechssl/{what}/{number}" for number in range(count)] for what in ("signed", "taken"))
    store.set(signed[rank], own)
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        if rank == 0 and store.check(signed):
            store.set("speechssl/start", json.dumps([value.decode() for value in store.multi_get(signed)]))
            store.set(taken[0], own)
            if store.check(taken) and set(store.multi_get(taken)) == {own.encode()}:
                return own
        elif rank and store.check(["speechssl/start"]):
            found = json.loads(store.get("speechssl/start"))
            if found[rank:] and found[rank] == own:
                name: str = found[0]
                store.set(taken[rank], name)
                return name
        time.sleep(_PAUSE_SECONDS)
    raise TrainingError(f"process {rank}: expected {count} processes to start, found some missing after half an hour")
