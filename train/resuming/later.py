"""Figures over all devices that are worked out when they are logged, not when they are measured.

TRL gathers each of its metrics over all devices after every micro-batch and reads it at once, four
times for a fine-tuning and fourteen for a DPO, and every time the GPU runs dry. Here a trainer's
`gather` only remembers what this device has; one gather for all of it comes with the log line.
Values are the trainer's own. Only training processes import this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

Gathered = list[Any]
"""What all devices had, a tensor for each that was remembered."""


class Figure:
    """A figure that is not known yet; supports what TRL does with a gathered tensor."""

    def __init__(self, value: Callable[[Gathered], Any]) -> None:
        self.value = value

    def sum(self) -> Figure:
        return Figure(lambda known: self.value(known).sum())

    def mean(self) -> Figure:
        return Figure(lambda known: self.value(known).mean())

    def item(self) -> Figure:
        return Figure(lambda known: float(self.value(known)))

    def __truediv__(self, other: Figure) -> Figure:
        """0 where `other` is 0, which TRL asks first (`__gt__`)."""

        def divided(known: Gathered) -> Any:
            by = other.value(known)
            return self.value(known) / by if by else by

        return Figure(divided)

    def __floordiv__(self, number: int) -> Figure:
        return Figure(lambda known: self.value(known) // number)

    def __gt__(self, number: int) -> bool:
        return True

    def __radd__(self, number: float) -> Total:
        return Total(number, self)


class Total(Figure):
    """A sum that grows with each micro-batch."""

    def __init__(self, start: float, first: Figure) -> None:
        self.parts = [first]
        super().__init__(lambda known: start + sum(part.value(known) for part in self.parts))

    def __iadd__(self, other: Figure) -> Total:
        self.parts.append(other)
        return self


class Later:
    """What one device remembers of its figures until they are logged."""

    def __init__(self) -> None:
        self._here: list[Any] = []

    def gather(self, tensor: Any) -> Figure:
        """Stands for accelerate's gather and gather_for_metrics."""
        number = len(self._here)
        self._here.append(tensor.detach())
        return Figure(lambda known: known[number])

    @contextlib.contextmanager
    def instead_of(self, accelerator: Any) -> Iterator[None]:
        """Within this, the accelerator's gathers only remember."""
        accelerator.gather = accelerator.gather_for_metrics = self.gather
        try:
            yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics

    def work_out(self, trainer: Any) -> None:
        """Replace each figure among a TRL trainer's metrics by its value: one gather for all. Every
        device calls it."""
        if not self._here:
            return
        known = self._gathered()
        for metrics in trainer._metrics.values():
            for name, values in metrics.items():
                metrics[name] = [_known(value, known) for value in values]
        trainer._total_train_tokens = _known(trainer._total_train_tokens, known)
        self._here.clear()

    def _gathered(self) -> Gathered:
        """What every device remembers, as accelerate's gather gives it, on the CPU."""
        here = torch.cat([each.reshape(-1).double() for each in self._here])
        everywhere = here.new_empty(torch.distributed.get_world_size() * len(here))
        torch.distributed.all_gather_into_tensor(everywhere, here)
        sizes = [each.numel() for each in self._here]
        by_device = everywhere.cpu().reshape(-1, len(here))
        return [part.reshape(-1) for part in torch.split(by_device, sizes, dim=1)]


def _known(value: Any, known: Gathered) -> Any:
    return float(value.value(known)) if isinstance(value, Figure) else value
