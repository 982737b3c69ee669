"""The `janus` command."""

import typer

from services.cli.bench import bench
from services.cli.chat import chat
from services.cli.classify import classify
from services.cli.models import models
from services.cli.serve import serve, with_setting_flags
from services.cli.train import train

app = typer.Typer(
    help="Serve both halves of the Transformer, or talk to a gateway that does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(with_setting_flags(serve))
for command in (chat, classify, models, bench, train):
    app.command()(command)


def main() -> None:
    """The entry point of the `janus` script."""
    app()
