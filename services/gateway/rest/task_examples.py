"""Bodies that the OpenAPI document shows for the encoder's tasks; a test sends each."""

from fastapi.openapi.models import Example

Examples = dict[str, Example]

CLASSIFY: Examples = {
    "text": {"summary": "All labels, best first", "value": {"inputs": "I loved every minute of it."}},
    "texts": {
        "summary": "Several texts, the best label of each",
        "value": {"inputs": ["Wonderful.", "A waste of time."], "parameters": {"top_k": 1}, "truncate": True},
    },
}
ZERO_SHOT: Examples = {
    "labels": {
        "summary": "One of these labels",
        "value": {
            "inputs": "The rocket reached orbit at dawn.",
            "parameters": {"candidate_labels": ["space", "cooking", "politics"]},
        },
    },
    "multi_label": {
        "summary": "Each label on its own, asked in other words",
        "value": {
            "inputs": ["The rocket reached orbit at dawn."],
            "parameters": {
                "candidate_labels": "space, morning, sport",
                "hypothesis_template": "This text is about {}.",
                "multi_label": True,
            },
        },
    },
}
TOKEN_CLASSIFY: Examples = {
    "tokens": {"summary": "Every token that has a label", "value": {"inputs": "Ada Lovelace lived in London."}},
    "entities": {
        "summary": "Whole entities of a text of any length",
        "value": {
            "inputs": "Ada Lovelace lived in London.",
            "parameters": {"aggregation_strategy": "simple", "ignore_labels": ["O"], "stride": 16},
        },
    },
}
FILL_MASK: Examples = {
    "mask": {
        "summary": "The three likeliest words",
        "value": {"inputs": "Paris is the [MASK] of France.", "parameters": {"top_k": 3}},
    },
    "targets": {
        "summary": "One of these words",
        "value": {"inputs": "This film is [MASK].", "parameters": {"targets": ["great", "awful"]}},
    },
}
QUESTION_ANSWERING: Examples = {
    "question": {
        "summary": "One question",
        "value": {"inputs": {"question": "Where does Clara live?", "context": "My name is Clara. I live in Berkeley."}},
    },
    "questions": {
        "summary": "Several, with two answers to each, if there is one",
        "value": {
            "inputs": [
                {"question": "Who?", "context": "My name is Clara. I live in Berkeley."},
                {"question": "Where?", "context": "My name is Clara. I live in Berkeley."},
            ],
            "parameters": {"top_k": 2, "handle_impossible_answer": True},
        },
    },
}
RERANK: Examples = {
    "texts": {
        "summary": "The best document and its text",
        "value": {
            "query": "What is the capital of France?",
            "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
            "top_n": 1,
            "return_documents": True,
        },
    },
    "objects": {
        "summary": "Documents as objects",
        "value": {"query": "a fox", "documents": [{"text": "The quick brown fox"}, {"text": "The lazy dog"}]},
    },
}
ATTENTION: Examples = {
    "edges": {
        "summary": "The strongest edges of the last layer",
        "value": {"inputs": "The cat sat on the mat.", "parameters": {"layers": [-1], "top_k_edges": 20}},
    },
    "rollout": {
        "summary": "One matrix of what flows through all layers",
        "value": {"inputs": "The cat sat on the mat.", "parameters": {"reduce": "rollout"}},
    },
}
HUGGING_FACE: Examples = {
    "text-classification": {"summary": "To a classifier", "value": {"inputs": "I loved every minute of it."}},
    "zero-shot-classification": {
        "summary": "To a model of natural language inference",
        "value": {
            "inputs": "The rocket reached orbit at dawn.",
            "parameters": {"candidate_labels": ["space", "cooking"]},
        },
    },
    "token-classification": {
        "summary": "To a tagger",
        "value": {"inputs": "Ada Lovelace lived in London.", "parameters": {"aggregation_strategy": "simple"}},
    },
    "fill-mask": {"summary": "To a model that fills masks", "value": {"inputs": "Paris is the [MASK] of France."}},
    "question-answering": {
        "summary": "To a reader",
        "value": {"inputs": {"question": "Where does Clara live?", "context": "My name is Clara. I live in Berkeley."}},
    },
    "feature-extraction": {
        "summary": "To any encoder: its parameters stand beside the inputs",
        "value": {"inputs": ["a fox", "a dog"], "normalize": True, "truncate": True},
    },
}
