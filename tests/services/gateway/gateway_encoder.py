"""Scripted answers of every encoder task, made of the request alone: tests can tell what reached the worker."""

from typing import Any

from janus.v1 import common_pb2, encoder_pb2, encoder_pb2_grpc

TASKS = (
    "classify",
    "embeddings",
    "zero-shot-classify",
    "token-classify",
    "fill-mask",
    "question-answering",
    "rerank",
    "attention",
)
MASK = "[MASK]"
TIMINGS = common_pb2.Timings(queue_ms=0.5, tokenize_ms=0.25, inference_ms=2, total_ms=3)


def usage(num_inputs: int, truncated: bool = False) -> common_pb2.Usage:
    return common_pb2.Usage(prompt_tokens=3 * num_inputs, total_tokens=3 * num_inputs, truncated=truncated)


class ScriptedEncoder(encoder_pb2_grpc.EncoderServiceServicer):
    """The encoder half of a scripted worker."""

    async def _begin(self, request: Any, context: Any) -> bool:
        raise NotImplementedError

    async def ClassifyText(self, request: Any, context: Any) -> encoder_pb2.ClassifyTextResponse:
        await self._begin(request, context)
        labels = [
            encoder_pb2.LabelScore(label="positive", score=0.75),
            encoder_pb2.LabelScore(label="negative", score=0.25),
        ]
        if request.parameters.HasField("top_k"):
            labels = labels[: request.parameters.top_k]
        return encoder_pb2.ClassifyTextResponse(
            model=request.model,
            results=[encoder_pb2.TextClassification(labels=labels) for _ in request.inputs],
            usage=usage(len(request.inputs), request.truncate),
            metrics=TIMINGS,
        )

    async def ClassifyZeroShot(self, request: Any, context: Any) -> encoder_pb2.ClassifyZeroShotResponse:
        """Half of what is left to each label, in the order of the request."""
        await self._begin(request, context)
        labels = [
            encoder_pb2.LabelScore(label=label, score=0.5 ** (place + 1))
            for place, label in enumerate(request.parameters.candidate_labels)
        ]
        return encoder_pb2.ClassifyZeroShotResponse(
            model=request.model,
            results=[encoder_pb2.TextClassification(labels=labels) for _ in request.inputs],
            usage=usage(len(request.inputs), request.truncate),
            metrics=TIMINGS,
        )

    async def ClassifyTokens(self, request: Any, context: Any) -> encoder_pb2.ClassifyTokensResponse:
        """The first word of each text is a person."""
        await self._begin(request, context)
        results = []
        for text in request.inputs:
            word = text.split()[0]
            entity = encoder_pb2.Entity(score=0.75, word=word, start=0, end=len(word))
            if request.parameters.aggregation_strategy > encoder_pb2.AGGREGATION_STRATEGY_NONE:
                entity.entity_group = "PER"
            else:
                entity.entity, entity.index = "B-PER", 1
            results.append(encoder_pb2.TokenClassification(entities=[entity]))
        return encoder_pb2.ClassifyTokensResponse(
            model=request.model,
            results=results,
            usage=usage(len(request.inputs), request.truncate),
            metrics=TIMINGS,
        )

    async def FillMask(self, request: Any, context: Any) -> encoder_pb2.FillMaskResponse:
        """The targets, or two words, for each mask."""
        await self._begin(request, context)
        words = list(request.parameters.targets) or ["capital", "heart"]
        if request.parameters.HasField("top_k"):
            words = words[: request.parameters.top_k]
        return encoder_pb2.FillMaskResponse(
            model=request.model,
            results=[_filled(text, words) for text in request.inputs],
            usage=usage(len(request.inputs), request.truncate),
            metrics=TIMINGS,
        )

    async def AnswerQuestion(self, request: Any, context: Any) -> encoder_pb2.AnswerQuestionResponse:
        """The words of the context in turn."""
        await self._begin(request, context)
        top_k = request.parameters.top_k if request.parameters.HasField("top_k") else 1
        return encoder_pb2.AnswerQuestionResponse(
            model=request.model,
            results=[_answered(each.context, top_k) for each in request.inputs],
            usage=usage(len(request.inputs)),
            metrics=TIMINGS,
        )

    async def EmbedText(self, request: Any, context: Any) -> encoder_pb2.EmbedTextResponse:
        await self._begin(request, context)
        vectors = [[0.5, -0.25, 0.1, float(len(each.text) or len(each.tokens.ids))] for each in request.input]
        if request.HasField("dimensions"):
            vectors = [vector[: request.dimensions] for vector in vectors]
        return encoder_pb2.EmbedTextResponse(
            model=request.model,
            embeddings=[encoder_pb2.Embedding(values=vector) for vector in vectors],
            usage=usage(len(request.input), request.truncate),
            metrics=TIMINGS,
        )

    async def RerankTexts(self, request: Any, context: Any) -> encoder_pb2.RerankTextsResponse:
        """The last document is the best."""
        await self._begin(request, context)
        ranked = [
            encoder_pb2.RankedText(
                index=index,
                relevance_score=0.5 ** (place + 1),
                document=request.documents[index] if request.return_documents else None,
            )
            for place, index in enumerate(reversed(range(len(request.documents))))
        ]
        return encoder_pb2.RerankTextsResponse(
            model=request.model,
            results=ranked[: request.top_n] if request.HasField("top_n") else ranked,
            usage=usage(len(request.documents), request.truncate),
            metrics=TIMINGS,
        )

    async def InspectAttention(self, request: Any, context: Any) -> encoder_pb2.InspectAttentionResponse:
        """Every word looks at every word alike."""
        await self._begin(request, context)
        return encoder_pb2.InspectAttentionResponse(
            model=request.model,
            results=[_inspected(text, request.parameters) for text in request.inputs],
            usage=usage(len(request.inputs), request.truncate),
            metrics=TIMINGS,
        )


def _filled(text: str, words: list[str]) -> encoder_pb2.FilledText:
    candidates = [
        encoder_pb2.MaskCandidate(
            score=0.5 ** (place + 1), token=place, token_str=word, sequence=text.replace(MASK, word, 1)
        )
        for place, word in enumerate(words)
    ]
    return encoder_pb2.FilledText(
        masks=[encoder_pb2.FilledMask(candidates=candidates) for _ in range(text.count(MASK))]
    )


def _answered(context: str, top_k: int) -> encoder_pb2.QuestionAnswers:
    answers = []
    for place, word in enumerate(context.split()[:top_k]):
        start = context.index(word)
        answers.append(encoder_pb2.Answer(answer=word, score=0.5 ** (place + 1), start=start, end=start + len(word)))
    return encoder_pb2.QuestionAnswers(answers=answers)


def _inspected(text: str, parameters: Any) -> encoder_pb2.InspectedText:
    words = text.split()
    tokens = []
    for place, word in enumerate(words):
        start = text.index(word)
        tokens.append(encoder_pb2.InspectedToken(token=place, token_str=word, start=start, end=start + len(word)))
    if parameters.reduce > encoder_pb2.ATTENTION_REDUCTION_NONE:
        matrices = [encoder_pb2.AttentionMatrix()]
    else:
        layers, heads = parameters.layers or [0], parameters.heads or [0]
        matrices = [encoder_pb2.AttentionMatrix(layer=layer, head=head) for layer in layers for head in heads]
    for matrix in matrices:
        if parameters.HasField("top_k_edges"):
            edges = [(source, target) for source in range(len(words)) for target in range(len(words))]
            for source, target in edges[: parameters.top_k_edges]:
                matrix.edges.add(source=source, target=target, weight=1 / len(words))
        else:
            matrix.weights.extend([1 / len(words)] * len(words) ** 2)
    return encoder_pb2.InspectedText(tokens=tokens, matrices=matrices)
