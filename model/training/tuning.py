"""What is trained: low-rank factors (Hu et al., 2021) or the weights of the Linears, and what becomes of them.

An encoder ends as an adapter. A decoder has none when it serves, so it ends as weights.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from model.adapters import Adapter, attach, blank, blank_factors, detach, give_factors, linears_of
from model.decoder import CausalLanguageModel
from model.encoder import EncoderModel
from model.training.objective import Trainable
from model.training.recipe import Recipe


def body_of(model: Trainable) -> nn.Module:
    return model.encoder if isinstance(model, EncoderModel) else model.decoder


class TunedModel:
    """A model, a head, and the parameters that are trained, by name.

    Raises: ValueError for patterns that no Linear has the path of, or for another adapter that does something else.
    """

    def __init__(self, model: Trainable, recipe: Recipe, *, task: str, labels: tuple[str, ...]) -> None:
        self.model = model
        self._recipe, self._task, self._labels = recipe, task, labels
        tuning = recipe.tuning
        self._others = [self._read(path, "averaged_with") for path in tuning.averaged_with]
        linears = linears_of(body_of(model))
        self._paths = [path for path in linears if any(fnmatch.fnmatch(path, one) for one in tuning.linears)]
        if not self._paths:
            raise ValueError(f"tuning.linears: none of {', '.join(linears)} is {' or '.join(tuning.linears)}")
        self._is_full = tuning.method == "full"
        changed: list[str] = [] if self._is_full else self._paths
        if isinstance(model, EncoderModel):
            start = self._begun() or blank(
                recipe.name, labels, model, rank=tuning.rank, seed=recipe.seed, task=task, paths=changed
            )
            (self.head,) = attach(model, [start])
        else:
            down, up = blank_factors(model.decoder, tuning.rank, torch.Generator().manual_seed(recipe.seed), changed)
            give_factors(model.decoder, [Adapter(recipe.name, (), down, up, {})])
            self.head = model.head
        self.parameters = self._trained()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self._before = {
            path: linears[path].weight.detach().clone()
            for path in self._paths
            if self._is_full and isinstance(model, EncoderModel)
        }

    def _begun(self) -> Adapter | None:
        """The adapter that the recipe goes on from. Raises: ValueError for one that does something else."""
        tuning = self._recipe.tuning
        if tuning.start is None:
            return None
        adapter = self._read(tuning.start, "start")
        ranks = {len(down_RI) for down_RI in adapter.down.values()}
        if tuning.method != "lora" or adapter.down.keys() != set(self._paths) or ranks != {tuning.rank}:
            raise ValueError(f"tuning.start: {tuning.start} has other factors than those that the recipe trains")
        return adapter

    def _read(self, path: Path, key: str) -> Adapter:
        adapter = Adapter.load(path)
        if (adapter.task, adapter.labels) != (self._task, self._labels):
            raise ValueError(f"tuning.{key}: {path} is for {adapter.task} {', '.join(adapter.labels)}")
        return adapter

    def _trained(self) -> dict[str, nn.Parameter]:
        if isinstance(self.model, CausalLanguageModel) and self._is_full:
            return dict(self.model.named_parameters())
        body = dict(body_of(self.model).named_parameters())
        wanted = [f"{path}.weight" for path in self._paths]
        if not self._is_full:
            wanted = [f"{path}.adapters.{factor}" for path in self._paths for factor in ("down", "up")]
        trained = {name: body[name] for name in wanted}
        if isinstance(self.model, EncoderModel):
            shared = {id(parameter) for parameter in self.model.parameters()}
            own = {f"head.{name}": one for name, one in self.head.named_parameters() if id(one) not in shared}
            trained |= own
        return trained

    def finish(self) -> Adapter | None:
        """The adapter of an encoder; a decoder keeps what it learnt in its weights. Mutates: the model.

        Figures taken from here on are those of what is saved.
        """
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        linears = linears_of(body_of(self.model))
        if isinstance(self.model, CausalLanguageModel):
            for module in linears.values():
                if module.adapters is not None:
                    module.weight.add_(module.adapters.up[0] @ module.adapters.down[0])
                    module.adapters = None
            return None
        if self._is_full:
            factors = self._compressed()
            for path, weight in self._before.items():
                linears[path].weight.copy_(weight)
            give_factors(self.model.encoder, [Adapter(self._recipe.name, self._labels, *factors, {})])
        adapter = detach(self._recipe.name, self._labels, self.model, self.head, task=self._task)
        if self._others:
            adapter = mean_of([adapter, *self._others])
            (self.head,) = attach(self.model, [adapter])
        return adapter

    def _compressed(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What full tuning changed, as the factors of the recipe's rank that come closest to it."""
        down, up = {}, {}
        linears = linears_of(body_of(self.model))
        for path, before in self._before.items():
            u_OR, s_R, v_RI = torch.linalg.svd(linears[path].weight.detach() - before, full_matrices=False)
            rank = self._recipe.tuning.rank
            up[path] = u_OR[:, :rank] * s_R[:rank].sqrt()
            down[path] = v_RI[:rank] * s_R[:rank, None].sqrt()
        return down, up


def mean_of(adapters: Sequence[Adapter]) -> Adapter:
    """The mean of what adapters of one task change, exactly: their factors side by side. Their heads are averaged too.

    Raises: ValueError where they change other Linears.
    """
    first = adapters[0]
    if any(one.down.keys() != first.down.keys() for one in adapters):
        raise ValueError("tuning.averaged_with: an adapter changes other Linears than the recipe trains")
    down = {path: torch.cat([one.down[path].to(tensor) for one in adapters]) for path, tensor in first.down.items()}
    up = {
        path: torch.cat([one.up[path].to(tensor) for one in adapters], dim=1) / len(adapters)
        for path, tensor in first.up.items()
    }
    head = {
        name: torch.stack([one.head[name].to(tensor) for one in adapters]).mean(dim=0)
        for name, tensor in first.head.items()
    }
    return Adapter(first.name, first.labels, down, up, head, first.task)
