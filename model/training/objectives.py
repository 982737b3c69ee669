"""The objectives that a recipe may name, and the options that each of them has."""

from typing import Any

from model.tokenizer import Tokenizer
from model.training.causal_language import CausalLanguage, CausalOptions
from model.training.classification import Classification, ClassificationOptions
from model.training.masked_language import MaskedLanguage, MaskingOptions
from model.training.objective import Objective
from model.training.recipe import Recipe, section
from model.training.spans import SpanOptions, Spans

_OBJECTIVES: dict[str, tuple[Any, type[Any]]] = {
    "classification": (Classification, ClassificationOptions),
    "masked-language": (MaskedLanguage, MaskingOptions),
    "causal-language": (CausalLanguage, CausalOptions),
    "spans": (Spans, SpanOptions),
}


def new_objective(recipe: Recipe, tokenizer: Tokenizer) -> Objective[Any]:
    """Raises: ValueError for an objective that nobody knows, or options that are not its own."""
    if recipe.objective not in _OBJECTIVES:
        raise ValueError(f"objective is {recipe.objective!r}, not one of {', '.join(_OBJECTIVES)}")
    kind, options = _OBJECTIVES[recipe.objective]
    made = section(options, recipe.options, folder=recipe.folder, name="options")
    return kind(made, tokenizer, batch_tokens=recipe.optimization.batch_tokens)
