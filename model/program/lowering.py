"""From a model's own `forward` to a program, by tracing it once with torch.fx.

A module that is used in several places shows under its first path everywhere (DeBERTa's positions, a table of
rotations). Nodes without users stay: an operation may be there for what it writes into the cache.
"""

import operator

from torch import fx, nn

from model.errors import CannotLower
from model.program.leaves import leaf_of
from model.program.operation import Field, Operation, Program, Rows, Slot, Value

# What a leaf may read of a batch, and what it may read a layer of.
_FIELDS = frozenset(
    {"token_ids_T", "token_ids_U", "token_types_T", "token_types_U", "metadata", "metadata.positions_T", "memory"}
)
_LAYERED = frozenset({"cache.layers", "cache.memory_layers"})


class LeafTracer(fx.Tracer):
    """Sees each leaf as one node, and through everything else."""

    def __init__(self, function: str = "forward") -> None:
        super().__init__()
        self.traced_func_name = function

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return leaf_of(m) is not None


def lower(model: nn.Module, function: str = "forward") -> Program:
    """The operations of one function of a model: `forward`, or an encoder-decoder's `remember`.

    No other thread may run a module meanwhile: tracing changes what it means to call one. Raises: CannotLower, with the
    node, for anything but leaves, sums and fields of the batch; the model still runs as it is.
    """
    tracer = LeafTracer(function)
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, NameError, RuntimeError, TypeError) as error:
        last = next(iter(reversed(tracer.graph.nodes)), None)
        raise CannotLower(f"{function} is no straight line after {last}: {error}") from error
    return _Lowering(model, graph).program()


class _Lowering:
    """What has become of each node of a graph."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._model = model
        self._graph = graph
        self._values: dict[fx.Node, Slot | Field] = {}
        self._operations: list[Operation] = []
        names = {node.target for node in graph.nodes if node.op == "placeholder"}
        self._token_rows: Rows = "U" if "token_ids_U" in names else "T"

    def program(self) -> Program:
        result = None
        for node in self._graph.nodes:
            if node.op == "placeholder":
                self._values[node] = Field(str(node.target))
            elif node.op == "call_module":
                self._leaf(node)
            elif node.op == "output":
                result = self._result(node)
            elif node.target is operator.add:
                self._sum(node)
            elif node.target is getattr:
                self._values[node] = Field(f"{self._owner(node)}.{node.args[1]}")
            elif node.target is operator.getitem and self._owner(node) in _LAYERED:
                self._values[node] = Field(self._owner(node), node.args[1])
            else:
                raise _stranger(node)
        return Program(tuple(self._operations), result)

    def _leaf(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self._model.get_submodule(path)
        leaf = leaf_of(module)
        inputs = self._inputs(node)
        assert leaf is not None
        first = next((value for value in inputs if isinstance(value, Slot)), None)
        rows = leaf.rows or (first.rows if first else self._token_rows)
        width = None if leaf.width is None else leaf.width(module, first.width if first else 0)
        self._append(node, type(module).__name__, path, inputs, rows, width)

    def _sum(self, node: fx.Node) -> None:
        inputs = self._inputs(node)
        shapes = {(term.rows, term.width) for term in inputs if isinstance(term, Slot)}
        if not all(isinstance(term, Slot) for term in inputs) or len(shapes) != 1:
            raise _stranger(node)
        self._append(node, "Add", "", inputs, *shapes.pop())

    def _append(
        self, node: fx.Node, name: str, path: str, inputs: tuple[Value, ...], rows: Rows, width: int | None
    ) -> None:
        output = None
        if width is not None:
            output = self._values[node] = Slot(len(self._operations), rows, width)
        self._operations.append(Operation(name, path, inputs, output))

    def _inputs(self, node: fx.Node) -> tuple[Value, ...]:
        """What a leaf or a sum reads, in order."""
        if node.kwargs:
            raise _stranger(node)
        return tuple(None if argument is None else self._value(argument, node) for argument in node.args)

    def _value(self, argument: object, node: fx.Node) -> Slot | Field:
        value = self._values.get(argument) if isinstance(argument, fx.Node) else None
        if isinstance(value, Field) and value.name not in (_FIELDS if value.layer is None else _LAYERED):
            raise CannotLower(f"{node.format_node()} reads {value.name!r}, which is no field of a batch")
        if value is None:
            raise _stranger(node)
        return value

    def _owner(self, node: fx.Node) -> str:
        """The name of the field that a part is taken of."""
        whole = node.args[0]
        value = self._values.get(whole) if isinstance(whole, fx.Node) else None
        if not isinstance(value, Field) or value.layer is not None:
            raise _stranger(node)
        return value.name

    def _result(self, node: fx.Node) -> Slot | None:
        (given,) = node.args
        value = None if given is None else self._value(given, node)
        if isinstance(value, Field):
            raise _stranger(node)
        return value


def _stranger(node: fx.Node) -> CannotLower:
    return CannotLower(f"{node.format_node()} is neither a leaf nor a sum nor a field of the batch")
