"""What the board is made of: expressions, and the kinds of panel in the one style that all of them share."""

import string
from collections.abc import Sequence
from typing import TypeAlias

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="janus-prometheus")
QUANTILES = (0.5, 0.95, 0.99)
GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "#808080"

Panel: TypeAlias = timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel
Query: TypeAlias = tuple[str, str]
"""An expression and its legend."""


def rate(metric: str, labels: str, *by: str) -> str:
    """A counter's increase a second, summed."""
    grouping = f" by ({', '.join(by)}) " if by else ""
    return f"sum{grouping}(rate(janus_{metric}{{{labels}}}[$__rate_interval]))"


def mean(metric: str, labels: str, *by: str) -> str:
    """The mean of a histogram's observations."""
    return f"{rate(f'{metric}_sum', labels, *by)} / {rate(f'{metric}_count', labels, *by)}"


def quantile(share: float, metric: str, labels: str, *by: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, 'le', *by)})"


def quantiles(metric: str, labels: str) -> list[Query]:
    """The median, and how bad it gets."""
    return [(quantile(share, metric, labels), f"p{share * 100:g}") for share in QUANTILES]


def steps(*pairs: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colours from values on; the first has none."""
    thresholds = [model.Threshold(value=value, color=color) for value, color in pairs]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(thresholds)


def targets(queries: Sequence[Query], *, is_instant: bool = False) -> list[prometheus.Dataquery]:
    made = []
    for ref_id, (expression, legend) in zip(string.ascii_uppercase, queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref_id).datasource(DATASOURCE)
        made.append(query.instant().format(PromQueryFormat.TABLE) if is_instant else query.range())
    return made


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    is_stacked: bool = False,
    limit: float | None = None,
    top: float | None = None,
) -> timeseries.Panel:
    """Curves over time; `limit` draws a line that should not be crossed, `top` is the end of the axis."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(targets(queries))  # type: ignore[arg-type]
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if is_stacked else 8)
        .show_points(options.VisibilityMode.NEVER)
        .span_nulls(False)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.TABLE)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "mean", "max"])
        )
        .height(8)
        .span(8)
    )
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    if limit is not None:
        panel.thresholds(steps((None, GREEN), (limit, RED)))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED))
    if top is not None:
        panel.max(top)
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    expression: str,
    thresholds: dashboard.ThresholdsConfig,
    *,
    decimals: int = 1,
) -> stat.Panel:
    """One figure of now, with its recent past behind it."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(targets([(expression, title)]))  # type: ignore[arg-type]
        .unit(unit)
        .decimals(decimals)
        .no_value("none")
        .thresholds(thresholds)
        .color_mode(options.BigValueColorMode.VALUE)
        .graph_mode(options.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .height(4)
        .span(4)
    )


def states() -> statetimeline.Panel:
    """Each worker's state over time: the state's number picks the word and the colour."""
    words = {
        1: ("ready", GREEN),
        2: ("loading", BLUE),
        3: ("draining", YELLOW),
        4: ("connecting", GREY),
        5: ("lost", RED),
    }
    numbers = " or ".join(
        f'{value} * (janus_worker_state{{state="{word}", worker=~"$worker"}} == 1)'
        for value, (word, _) in words.items()
    )
    mapping = model.ValueMap(
        options={
            str(value): model.ValueMappingResult(text=word, color=color, index=value)
            for value, (word, color) in words.items()
        }
    )
    return (
        statetimeline.Panel()
        .title("State of each worker")
        .description("As the gateway sees it, from health checks and from the answers to its requests.")
        .datasource(DATASOURCE)
        .targets(targets([(f"max by (worker_kind, worker) ({numbers})", "{{worker_kind}} {{worker}}")]))  # type: ignore[arg-type]
        .mappings([mapping])
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .merge_values(True)
        .show_value(options.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(False)
        )
        .height(6)
        .span(16)
    )


def labels_of(title: str, description: str, expression: str, hidden: Sequence[str]) -> table.Panel:
    """The labels of series whose value is always 1."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(targets([(expression, "")], is_instant=True))  # type: ignore[arg-type]
        .with_transformation(
            model.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": dict.fromkeys(("Time", "Value", "__name__", *hidden), True)},
            )
        )
        .height(6)
        .span(12)
    )
