"""The loop: AdamW (Loshchilov and Hutter, 2017), a warm-up and a decay, clipped gradients, a seed for every step.

A step draws all that is random from its own number, and the order of an epoch from the epoch's, so a run that goes on
from its saved state takes the same steps, bit for bit, as one that was never cut.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import dropout

from model.training.batches import cut
from model.training.objective import ExampleT, Objective
from model.training.recipe import Optimization, Recipe
from model.training.run_state import load_state, save_state
from model.training.tuning import TunedModel, body_of

# Steps between two savings of the state.
_SAVE_STEPS = 25
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Trainer(Generic[ExampleT]):
    """One run of a recipe. `losses` has the mean loss of each step, `step` is how many there were."""

    def __init__(
        self,
        tuned: TunedModel,
        objective: Objective[ExampleT],
        recipe: Recipe,
        training: Sequence[ExampleT],
        validation: Sequence[ExampleT],
    ) -> None:
        self.tuned, self._objective, self._recipe = tuned, objective, recipe
        self._training, self._validation = training, validation
        self._settings = recipe.optimization
        self._device = next(tuned.model.parameters()).device
        self._optimizer = _optimizer(tuned, self._settings)
        self._passes = [batch for epoch in range(self._settings.num_epochs) for batch in self._epoch(epoch)]
        self.num_steps = math.ceil(len(self._passes) / self._settings.num_accumulated)
        self.step = 0
        self.losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._best_figure = -math.inf
        self._num_worse = 0
        self._mean: dict[str, Tensor] = {}

    def _epoch(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self._recipe.seed}, epoch {epoch}")
        return cut(self._training, self._settings.batch_tokens, chance)

    def run(self, state: Path | None = None, *, until_step: int | None = None) -> None:
        """Trains to the end, or to a step; with `state`, goes on from that file and keeps it up to date.

        Raises: ValueError for a state of another recipe. Mutates: the model, which has its best weights in the end.
        """
        if state is not None and state.exists():
            self._resume(state)
        last = self.num_steps if until_step is None else min(until_step, self.num_steps)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress, self._dropping():
            bar = progress.add_task(
                f"Training {self._recipe.name}", total=self.num_steps, completed=self.step, loss=0.0
            )
            while self.step < last and not self._is_over:
                self._take_step()
                recent = self.losses[-50:]
                progress.update(bar, completed=self.step, loss=sum(recent) / len(recent))
                if self._is_time_to_look:
                    self._look(progress.console.print)
                if state is not None and (self.step % _SAVE_STEPS == 0 or self.step == last):
                    self._save(state)
        if self.step == self.num_steps or self._is_over:
            _put(self.tuned.parameters, self._best or self._standing)

    def figures(self, examples: Sequence[ExampleT] | None = None) -> dict[str, float]:
        """What the weights as they are now do with the validation part, or with other examples."""
        with self._precision():
            return self._objective.figures(self.tuned.model, self.tuned.head, examples or self._validation)

    @property
    def _is_over(self) -> bool:
        patience = self._recipe.validation.patience
        return 0 < patience <= self._num_worse

    @property
    def _is_time_to_look(self) -> bool:
        every = self._recipe.validation.every_steps
        return every > 0 and (self.step % every == 0 or self.step == self.num_steps)

    @property
    def _standing(self) -> dict[str, Tensor]:
        """What would count if the run ended here: the mean of the weights as far as there is one."""
        standing = self._mean or self.tuned.parameters
        return {name: tensor.detach().clone() for name, tensor in standing.items()}

    def _look(self, say: Callable[..., None]) -> None:
        """Keeps what stands if it is the best so far."""
        standing = self._standing
        with self._put_aside(standing):
            figures = self.figures()
        name = self._recipe.validation.figure.removeprefix("-")
        if name not in figures:
            raise ValueError(f"validation.figure: {name!r} is none of {', '.join(figures)}")
        figure = -figures[name] if self._recipe.validation.figure.startswith("-") else figures[name]
        say(f"step {self.step}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()), markup=False)
        if figure > self._best_figure:
            self._best_figure, self._num_worse = figure, 0
            self._best = standing
        else:
            self._num_worse += 1

    @contextmanager
    def _put_aside(self, standing: Mapping[str, Tensor]) -> Iterator[None]:
        """Others in the place of the weights, for as long as figures are taken."""
        weights = {name: parameter.detach().clone() for name, parameter in self.tuned.parameters.items()}
        _put(self.tuned.parameters, standing)
        try:
            yield
        finally:
            _put(self.tuned.parameters, weights)

    def _take_step(self) -> None:
        num_passes = self._settings.num_accumulated
        passes = self._passes[self.step * num_passes : (self.step + 1) * num_passes]
        chance = random.Random(f"{self._recipe.seed}, step {self.step}")
        torch.manual_seed(chance.getrandbits(63))
        rate = course(self._settings, self.step, self.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["full_rate"] * rate
        self._optimizer.zero_grad()
        total = 0.0
        for numbers in passes:
            batch = [self._training[number] for number in numbers]
            with self._precision(), self._attention():
                loss = self._objective.loss(self.tuned.model, self.tuned.head, batch, chance) / len(passes)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(list(self.tuned.parameters.values()), self._settings.max_gradient_norm)
        self._optimizer.step()
        self.losses.append(total)
        self.step += 1
        self._average()

    def _average(self) -> None:
        """Takes the weights into their mean, once the last part of the run has begun."""
        first = self.num_steps - math.ceil(self.num_steps * self._settings.averaged_ratio)
        if self.step <= first:
            return
        for name, parameter in self.tuned.parameters.items():
            weight = parameter.detach()
            mean = self._mean.setdefault(name, weight.clone())
            mean += (weight - mean) / (self.step - first)

    def _precision(self) -> torch.autocast:
        """Products in bf16 where the recipe says so; weights, norms, losses and the optimizer stay in float32."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._settings.precision == "bf16")

    def _attention(self) -> AbstractContextManager[None]:
        """On a CPU, plain products: the fused kernel spends a third of a step on its backward pass."""
        return sdpa_kernel(SDPBackend.MATH) if self._device.type == "cpu" else nullcontext()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Dropout behind each sublayer and before the head, for as long as gradients are wanted."""
        ratio = self._settings.dropout

        def behind(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            return dropout(output, ratio, training=torch.is_grad_enabled())

        def before(module: nn.Module, arguments: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            return dropout(arguments[0], ratio, training=torch.is_grad_enabled()), *arguments[1:]

        hooks = []
        if ratio:
            hooks.append(self.tuned.head.register_forward_pre_hook(before))
            for path, module in body_of(self.tuned.model).named_modules():
                if path.count(".") == 2 and path.endswith((".attention", ".feed_forward")):
                    hooks.append(module.register_forward_hook(behind))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {f"weights.{name}": one for name, one in self.tuned.parameters.items()}
        tensors |= {f"best.{name}": one for name, one in self._best.items()}
        tensors |= {f"mean.{name}": one for name, one in self._mean.items()}
        for name, parameter in self.tuned.parameters.items():
            moments = self._optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moment in moments}
        record = {
            "recipe": self._digest,
            "step": self.step,
            "losses": self.losses,
            "best_figure": self._best_figure,
            "num_worse": self._num_worse,
        }
        save_state(path, tensors, record)

    def _resume(self, path: Path) -> None:
        tensors, record = load_state(path)
        if record["recipe"] != self._digest:
            raise ValueError(f"{path} is the state of another recipe or other data; remove it to begin again")
        self.step, self.losses = record["step"], record["losses"]
        self._best_figure, self._num_worse = record["best_figure"], record["num_worse"]
        _put(self.tuned.parameters, _under("weights", tensors))
        self._best = {name: tensor.to(self._device) for name, tensor in _under("best", tensors).items()}
        self._mean = {name: tensor.to(self._device) for name, tensor in _under("mean", tensors).items()}
        for name, parameter in self.tuned.parameters.items():
            moments = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS if f"{moment}.{name}" in tensors}
            if moments:
                self._optimizer.state[parameter] = {
                    moment: tensor if moment == "step" else tensor.to(self._device)
                    for moment, tensor in moments.items()
                }

    @property
    def _digest(self) -> str:
        """Of all that the steps depend on: the recipe and the tokens."""
        digest = hashlib.sha256(repr(self._recipe).encode())
        for example in self._training:
            digest.update(repr(example.token_ids).encode())
        return digest.hexdigest()


def course(settings: Optimization, step: int, num_steps: int) -> float:
    """The share of the full rate at a step."""
    num_warmup = max(1, round(num_steps * settings.warmup_ratio))
    if step < num_warmup:
        return (step + 1) / num_warmup
    left = (num_steps - step) / max(1, num_steps - num_warmup)
    return left if settings.decay == "linear" else (1 - math.cos(math.pi * left)) / 2


def _optimizer(tuned: TunedModel, settings: Optimization) -> torch.optim.AdamW:
    """Vectors (norms, biases) don't decay; a block's rate is `layer_decay` times that of the block above."""
    blocks = [int(name.split(".")[1]) for name in tuned.parameters if name.startswith("blocks.")]
    groups = []
    for name, parameter in tuned.parameters.items():
        depth = max(blocks) + 1 - int(name.split(".")[1]) if name.startswith("blocks.") else 0
        rate = settings.learning_rate * settings.layer_decay**depth
        decay = settings.weight_decay if parameter.dim() > 1 else 0.0
        groups.append({"params": [parameter], "full_rate": rate, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


@torch.no_grad()
def _put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
