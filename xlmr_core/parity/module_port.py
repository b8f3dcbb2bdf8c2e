"""Any `nn.Module` as a dump: the result of every operation in it, under the name of the submodule that computes it."""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xlmr_core.parity.adapters import Batch


def dump_of_module(module: nn.Module, batch: Batch, *, call: Callable[[], object] | None = None) -> dict[str, Tensor]:
    """Runs a module and keeps what each operation in it gives, for `match_tensors` to recognise.

        dump = dump_of_module(port, batch)
        matching = match_tensors(trace, dump)

    Args:
        module: The port. It is run as it is: call `eval()` on it before.
        batch: Its arguments, by name.
        call: Runs the module, if it takes other arguments: `lambda: port(batch["input_ids"])`.

    Returns:
        The floating-point results by name, in the order in which they are computed: "encoder.0.attention.query/addmm"
        is what `addmm` gives in this submodule, "encoder.0.attention/mul.1" the second product in that one.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    recorder = _Recorder(weights)
    with torch.no_grad(), _inside(module, recorder.inside), recorder:
        if call is not None:
            call()
        else:
            module(**{name: batch[name] for name in batch.keys()})  # noqa: SIM118 (not a dict)
    return recorder.seen


class _Recorder(TorchDispatchMode):
    """Keeps the results of operations. Views of weights are none."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.inside: list[str] = [""]  # the submodules that are being computed, the innermost last
        self.seen: dict[str, Tensor] = {}
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self._keep(func.overloadpacket.__name__.strip("_"), tensor)
        return result

    def _keep(self, operation: str, tensor: Tensor) -> None:
        if tensor.untyped_storage().data_ptr() in self.weights:
            return
        name = f"{self.inside[-1]}/{operation}"
        number = self.count[name]
        self.count[name] += 1
        # A copy: what follows may change the tensor in its place.
        self.seen[f"{name}.{number}" if number else name] = tensor.detach().clone().cpu()


@contextmanager
def _inside(module: nn.Module, stack: list[str]) -> Generator[None, None, None]:
    """While the context is open, the last entry of `stack` is the name of the submodule that is being computed."""

    def pop(*_call: object) -> None:
        stack.pop()

    with ExitStack() as hooks:
        for name, each in module.named_modules():

            def push(*_call: object, name: str = name) -> None:
                stack.append(name)

            hooks.callback(each.register_forward_pre_hook(push).remove)
            hooks.callback(each.register_forward_hook(pop, always_call=True).remove)
        yield
