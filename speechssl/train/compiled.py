"""Compiled updates: `torch.compile` of what a model computes in training, a graph for each shape of batches.

Shapes follow from the length buckets (``batches.fixed_shapes``), so nothing is compiled after the first pass over them.
What cannot become one graph, or would need ever more of them, ends the run in one line: it would only be slow.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from speechssl.errors import TrainingError
from speechssl.train.task import Batches

BACKEND: str | Callable[..., Any] = "inductor"
GRAPHS_PER_SHAPE = 4
"""The first batch of an update may find nothing gathered, to which the others add; what learns may change once."""

_INSTEAD = "set trainer.compile = false"


@contextmanager
def compiled_calls(modules: Sequence[nn.Module], batches: Batches[Any]) -> Iterator[None]:
    """Compile the calls of modules in training mode; in evaluation mode they are what they were.

    Noise is drawn as the compiler likes: dropout leaves out other elements than without it, as many.

    Raises:
        TrainingError: shapes of batches differ without end, a module cannot be compiled as a whole, or it needs more
            than `GRAPHS_PER_SHAPE` graphs for each shape.
    """
    import torch._dynamo

    if not all(stream.sampler.config.fixed_shapes for stream in batches.streams):
        raise TrainingError("trainer.compile: expected fixed_shapes = true in batches of every data set, found false")
    most = GRAPHS_PER_SHAPE * sum(stream.sampler.num_shapes for stream in batches.streams)
    limits = {"recompile_limit": most, "accumulated_recompile_limit": most * len(modules)}
    try:
        with torch._dynamo.config.patch(limits):
            for module in modules:
                module.forward = compiled_call(module, most)
            yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)  # beside which there is that of its class


def compiled_call(module: nn.Module, most: int) -> Callable[..., Any]:
    """Return what takes the place of a module's ``forward`` for up to so many graphs; as `compiled_calls`."""
    import torch._dynamo

    name, plain = type(module).__name__, module.forward
    device = next(module.parameters()).device
    compiled = torch.compile(plain, backend=BACKEND, fullgraph=True, dynamic=False)

    def forward(*arguments: Any) -> Any:
        if not module.training:
            return plain(*arguments)
        # A number of updates would be a constant of the graph, and the next update would need another one.
        given = [torch.full((), x, dtype=torch.float64, device=device) if isinstance(x, int) else x for x in arguments]
        try:
            return compiled(*given)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            raise TrainingError(
                f"trainer.compile: expected {name} to need {most} graphs, found more; {_INSTEAD}"
            ) from None
        except torch._dynamo.exc.TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines()]
            reason = next(filter(None, lines), type(error).__name__)
            raise TrainingError(f"trainer.compile: {name} cannot be compiled: {reason}; {_INSTEAD}") from None

    return forward
