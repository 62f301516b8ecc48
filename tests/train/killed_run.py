"""``speechssl`` under torchrun, of which at the first start the second process is killed in the update KILLED_STEP."""

import os
import signal

from torch import Tensor

from speechssl.__main__ import main
from speechssl.train.guard import FiniteGuard

if __name__ == "__main__":
    watch_update = FiniteGuard.watch_update

    def watch(guard: FiniteGuard, step: int, norm: Tensor) -> None:
        start = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
        if str(step + 1) == os.environ.get("KILLED_STEP") and start == ("0", "1"):
            os.kill(os.getpid(), signal.SIGKILL)
        watch_update(guard, step, norm)

    FiniteGuard.watch_update = watch  # type: ignore[method-assign]
    main()
