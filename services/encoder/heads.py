"""Which tasks a checkpoint can do, and the head for each: what its architecture has, and what needs no weights."""

from collections.abc import Mapping
from typing import Any

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.dense import load_dense
from model.encoder import EncoderModel
from model.heads import (
    Dense,
    MaskedLanguageModel,
    Normalize,
    Pooling,
    SentenceVectors,
    SequenceClassifier,
    SpanExtractor,
    TokenClassifier,
)
from model.inspection import Inspection
from model.tokenizer import Tokenizer
from services.encoder.tasks.labels import Labels
from services.encoder.tasks.pooling import DenseLayer, UnknownPooling, VectorLayers
from services.encoder.tasks.rerank import score_function
from services.encoder.tasks.task import Head


def own_heads(checkpoint: Checkpoint, model: EncoderModel, tokenizer: Tokenizer) -> dict[str, Head]:
    """A head for each task: vectors from every encoder, and what the checkpoint was trained for.

    Raises: UnknownLabels, UnknownPooling; CheckpointError for the weights of a layer behind the pooling.
    """
    heads = {"embeddings": _vectors(checkpoint, model, tokenizer)}
    match model.head:
        case SequenceClassifier():
            heads |= _sequence_tasks(checkpoint, model.head, _labels(checkpoint.config, model))
        case TokenClassifier():
            heads["token-classify"] = Head(model.head, labels=_labels(checkpoint.config, model))
        case MaskedLanguageModel() if tokenizer.mask_token is not None:
            heads["fill-mask"] = Head(model.head)
        case SpanExtractor():
            heads["question-answering"] = Head(model.head)
    heads["attention"] = Head(Inspection(model.encoder))
    return heads


def _vectors(checkpoint: Checkpoint, model: EncoderModel, tokenizer: Tokenizer) -> Head:
    layers = VectorLayers.of_checkpoint(checkpoint.path)
    if layers.is_lower_cased and tokenizer.encode("A").ids != tokenizer.encode("a").ids:
        raise UnknownPooling(f"{checkpoint.path}: do_lower_case with a tokenizer that keeps capitals is not served")
    width = len(layers.modes) * model.config.width
    behind: list[Dense | Normalize] = []
    for layer in layers.behind:
        if isinstance(layer, DenseLayer):
            if layer.in_width != width:
                raise UnknownPooling(f"{layer.folder}: takes vectors of {layer.in_width} numbers, but gets {width}")
            width = layer.out_width
            behind.append(load_dense(layer.folder, layer.in_width, width, layer.activation, has_bias=layer.has_bias))
        else:
            behind.append(Normalize())
    module = SentenceVectors(Pooling(*layers.modes), behind).to(next(model.parameters()).device)
    return Head(module, width=width)


def _sequence_tasks(checkpoint: Checkpoint, module: SequenceClassifier, labels: Labels) -> dict[str, Head]:
    """A classifier's scores rank documents where there is one, and judge any label where one says "entailment"."""
    head = Head(module, labels=labels)
    tasks = {"classify": head}
    if len(labels.names) == 1:
        function = score_function(checkpoint.path, checkpoint.config)
        tasks["rerank"] = Head(module, labels=Labels(labels.names, function))
    if labels.entailment is not None:
        tasks["zero-shot-classify"] = head
    return tasks


def _labels(config: Mapping[str, Any], model: EncoderModel) -> Labels:
    return Labels.of_checkpoint(config, model.config.num_labels)
