"""`janus models`: what a gateway serves."""

from rich.console import Console
from rich.table import Table

from janus.v1.models_pb2 import ListModelsRequest, ListModelsResponse, ModelState
from janus.v1.models_pb2_grpc import ModelServiceStub
from services.cli.connection import Target, connect, run_client


def models(target: Target = None) -> None:
    """List the models that are served."""
    table = Table(box=None)
    for heading in ("model", "parent", "tasks", "labels", "tokens", "dtype", "device", "kernel", "state"):
        table.add_column(heading, no_wrap=True)
    for model in run_client(_list_models(target)).models:
        state = ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
        shown = [model.id, model.parent, " ".join(model.tasks), " ".join(model.labels), str(model.max_input_tokens)]
        table.add_row(*shown, model.dtype, model.device, model.kernel, state)
    console = Console()
    # Wider than the terminal rather than cut: ids are there to be copied, and lines to be searched.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table, markup=False)


async def _list_models(target: str | None) -> ListModelsResponse:
    async with connect(target) as channel:
        return await ModelServiceStub(channel).ListModels(ListModelsRequest())
