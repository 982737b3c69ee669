"""`janus train`: an adapter or a model from a recipe, in a process that has torch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="what to train on what, and how")],
    base: Annotated[Path | None, typer.Option(help="the model to train over (default: the default encoder)")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    state: Annotated[
        Path | None, typer.Option(help="where the run keeps its state (default: beside its output)")
    ] = None,
) -> None:
    """Train on your own data; a run that was cut goes on where it stood.

    What comes out of an encoder is an adapter: JANUS_ENCODER_ADAPTERS_DIR is the folder that adapters lie in.
    """
    command = [sys.executable, "-m", "model.training", str(recipe), "--device", device]
    for flag, value in (("--base", base), ("--state", state)):
        command += [] if value is None else [flag, str(value)]
    # On few cores threads that spin while they wait starve one another.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)
