"""`janus classify`: labels and scores of texts."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from janus.v1.encoder_pb2 import ClassifyTextParameters, ClassifyTextRequest, ClassifyTextResponse
from janus.v1.encoder_pb2_grpc import EncoderServiceStub
from services.cli.connection import Target, connect, run_client


def classify(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="texts to classify")],
    model: Annotated[str, typer.Option(help="model id (default: the gateway's own choice)")] = "",
    top_k: Annotated[int | None, typer.Option(min=1, help="how many labels, best first (default: all)")] = None,
    target: Target = None,
) -> None:
    """Classify texts, one line each."""
    response = run_client(_classify(texts, model, top_k, target))
    table = Table(box=None, show_header=False, pad_edge=False)
    for text, result in zip(texts, response.results, strict=True):
        table.add_row(text, *(f"{each.label} {each.score:.4f}" for each in result.labels))
    Console().print(table, markup=False)


async def _classify(texts: list[str], model: str, top_k: int | None, target: str | None) -> ClassifyTextResponse:
    parameters = ClassifyTextParameters(top_k=top_k)
    async with connect(target) as channel:
        request = ClassifyTextRequest(model=model, inputs=texts, parameters=parameters)
        return await EncoderServiceStub(channel).ClassifyText(request)
