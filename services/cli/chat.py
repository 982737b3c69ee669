"""`janus chat`: a conversation that streams; Ctrl-C cancels the answer, Ctrl-D ends it."""

import asyncio
import sys
from typing import Annotated

import grpc
import typer
from rich.console import Console

from janus.v1.decoder_pb2 import ChatMessage, ChatRequest, GenerationOptions
from janus.v1.decoder_pb2_grpc import DecoderServiceStub
from services.cli.connection import NoGateway, Target, connect, tell


class Conversation:
    """The messages so far, sent whole each time."""

    def __init__(self, options: GenerationOptions, *, model: str, system: str, target: str | None) -> None:
        self._options = options
        self._model = model
        self._target = target
        self._messages = [ChatMessage(role="system", content=system)] if system else []

    async def ask(self, text: str) -> None:
        """Stream the answer to the terminal; what was heard of it before a cancellation stays in the conversation."""
        messages = [*self._messages, ChatMessage(role="user", content=text)]
        heard: list[str] = []
        try:
            async with connect(self._target) as channel:
                request = ChatRequest(model=self._model, messages=messages, options=self._options)
                call = DecoderServiceStub(channel).Chat(request)
                async for response in call:
                    heard.append(response.event.delta.text)
                    print(heard[-1], end="", flush=True)
        finally:
            print(flush=True)
            if any(heard):
                self._messages = [*messages, ChatMessage(role="assistant", content="".join(heard))]


def chat(
    message: Annotated[str | None, typer.Argument(help="one message, answered once (default: a conversation)")] = None,
    model: Annotated[str, typer.Option(help="model id (default: the gateway's own choice)")] = "",
    system: Annotated[str, typer.Option(help="the system message")] = "",
    temperature: Annotated[float | None, typer.Option(min=0.0, help="default: the model's")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="default: the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="default: drawn")] = None,
    target: Target = None,
) -> None:
    """Talk to the decoder. Ctrl-C cancels an answer, Ctrl-D ends the conversation."""
    options = GenerationOptions(temperature=temperature, max_tokens=max_tokens, seed=seed)
    conversation = Conversation(options, model=model, system=system, target=target)
    if message is not None:
        raise typer.Exit(0 if _answered(conversation, message) else 1)
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text:
            _answered(conversation, text)


def _answered(conversation: Conversation, text: str) -> bool:
    console = Console(stderr=True, highlight=False, markup=False)
    try:
        asyncio.run(conversation.ask(text))
    except KeyboardInterrupt:
        console.print("(cancelled)", style="dim")
    except (NoGateway, grpc.aio.AioRpcError) as error:
        console.print(tell(error), style="red")
    else:
        return True
    return False
