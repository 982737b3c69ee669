"""The board: rows in the order in which one reads them when something is wrong, written to dashboards/janus.json.

    python deploy/grafana/board.py

Is it up, and how bad is it? Who asks for what? How long do they wait, and for which part? Why: queue, batches, cache?
Which worker? A test holds the file against this source, and every name in it against services/common/metrics.py.
"""

import json
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import units
from panels import (
    BLUE,
    DATASOURCE,
    GREEN,
    RED,
    YELLOW,
    Panel,
    labels_of,
    lines,
    mean,
    number,
    quantile,
    quantiles,
    rate,
    states,
    steps,
)

TARGET = Path(__file__).with_name("dashboards") / "janus.json"
IN_GATEWAY = 'job="gateway"'
GATEWAY = f'{IN_GATEWAY}, model=~"$model"'
WORKER = 'model=~"$model", worker=~"$worker"'
ENCODER_TASKS = 'task=~"classify|embeddings"'
DECODER_TASKS = 'task=~"chat|completions"'
# What the callers feel as a failure of ours; refusals that ask for a retry are shown apart.
FAILED = f'{GATEWAY}, code=~"internal|worker_lost|no_worker|deadline_exceeded"'


def rows() -> dict[str, list[Panel]]:
    """Every panel, by the row it stands in."""
    calm = steps((None, BLUE))
    running, waiting = "janus_requests_running", "janus_requests_waiting"
    return {
        "At a glance": [
            number(
                "Workers ready",
                "Share of the workers that the gateway may send requests to.",
                units.PercentUnit,
                'avg(janus_worker_up{worker=~"$worker"})',
                steps((None, RED), (0.5, YELLOW), (1, GREEN)),
                decimals=0,
            ),
            number(
                "Requests",
                "Requests that ended, a second.",
                units.RequestsPerSecond,
                rate("requests_total", GATEWAY),
                calm,
            ),
            number(
                "Failed",
                "Share of the requests that failed through our fault: internal, worker_lost, no_worker or too late.",
                units.PercentUnit,
                f"({rate('requests_total', FAILED)} or vector(0)) / {rate('requests_total', GATEWAY)}",
                steps((None, GREEN), (0.01, YELLOW), (0.05, RED)),
                decimals=2,
            ),
            number(
                "Encoder tasks, p95",
                "95 % of the requests to classify or to embed were answered within this time.",
                units.Seconds,
                quantile(0.95, "request_duration_seconds", f"{GATEWAY}, {ENCODER_TASKS}"),
                steps((None, GREEN), (0.25, YELLOW), (1, RED)),
                decimals=0,
            ),
            number(
                "First token, p95",
                "95 % of the streams began within this time.",
                units.Seconds,
                quantile(0.95, "time_to_first_token_seconds", WORKER),
                steps((None, GREEN), (1, YELLOW), (5, RED)),
                decimals=2,
            ),
            number(
                "Tokens generated",
                "Over all streams, a second.",
                "tokens/s",
                rate("generated_tokens_total", WORKER),
                calm,
            ),
        ],
        "Traffic": [
            lines(
                "Requests by task",
                "Requests that ended, a second, as the gateway counts them.",
                units.RequestsPerSecond,
                [(rate("requests_total", GATEWAY, "task", "transport"), "{{task}} {{transport}}")],
                is_stacked=True,
            ),
            lines(
                "Requests by code",
                "ok, or the word of the error table that was answered.",
                units.RequestsPerSecond,
                [(rate("requests_total", GATEWAY, "code"), "{{code}}")],
                is_stacked=True,
            ),
            lines(
                "Share of failures by code",
                "internal, worker_lost, no_worker and deadline_exceeded, of all requests. The alert stands at 5 %.",
                units.PercentUnit,
                [
                    (
                        f"({rate('requests_total', FAILED, 'code')}"
                        f" / on () group_left () {rate('requests_total', GATEWAY)}) or vector(0)",
                        "{{code}}",
                    )
                ],
                limit=0.05,
            ),
            lines(
                "Rejections",
                "Requests refused before any work, by reason: the caller may try again.",
                units.RequestsPerSecond,
                [(f"{rate('rejections_total', IN_GATEWAY, 'reason')} or vector(0)", "{{reason}}")],
                is_stacked=True,
            ),
            lines(
                "Cancellations",
                "Requests whose client went away, by how far they had come.",
                units.RequestsPerSecond,
                [(f"{rate('cancellations_total', IN_GATEWAY, 'stage')} or vector(0)", "{{stage}}")],
                is_stacked=True,
            ),
            lines(
                "Second attempts",
                "Requests that the gateway gave to another worker, by what befell the first.",
                units.RequestsPerSecond,
                [
                    (
                        f"{rate('retries_total', IN_GATEWAY, 'worker_kind', 'cause')} or vector(0)",
                        "{{worker_kind}} {{cause}}",
                    )
                ],
                is_stacked=True,
            ),
        ],
        "Latency": [
            lines(
                "Encoder tasks",
                "From a request's arrival at the gateway to its answer.",
                units.Seconds,
                quantiles("request_duration_seconds", f"{GATEWAY}, {ENCODER_TASKS}"),
            ),
            lines(
                "Time to first token",
                "From a request's arrival at the decoder to its first token: queue, prompt and the first step.",
                units.Seconds,
                quantiles("time_to_first_token_seconds", WORKER),
            ),
            lines(
                "Inter-token latency",
                "From one token of a stream to its next: what a reader sees as the speed of writing.",
                units.Seconds,
                quantiles("inter_token_latency_seconds", WORKER),
            ),
            lines(
                "Generations, whole",
                "From a request's arrival at the gateway to its last token. It grows with the length of the answers.",
                units.Seconds,
                quantiles("request_duration_seconds", f"{GATEWAY}, {DECODER_TASKS}"),
            ),
            lines(
                "Where a generation's time goes, p95",
                "Waiting, the prompt, then the tokens after the first.",
                units.Seconds,
                [
                    (quantile(0.95, "queue_duration_seconds", f'job="decoder", {WORKER}'), "queue"),
                    (quantile(0.95, "prefill_duration_seconds", WORKER), "prefill"),
                    (quantile(0.95, "decode_duration_seconds", WORKER), "decode"),
                ],
            ),
            lines(
                "Where an encoder task's time goes, p95",
                "Tokenizing, waiting for the runner, the forward pass with its head.",
                units.Seconds,
                [
                    (quantile(0.95, "tokenize_duration_seconds", f'job="encoder", {WORKER}'), "tokenize"),
                    (quantile(0.95, "queue_duration_seconds", f'job="encoder", {WORKER}'), "queue"),
                    (quantile(0.95, "inference_duration_seconds", WORKER), "inference"),
                ],
            ),
        ],
        "Load": [
            lines(
                "Running and waiting",
                "Sequences in the running set, and requests in the queue behind it.",
                units.Short,
                [
                    (f'sum by (worker) ({running}{{job=~"encoder|decoder", {WORKER}}})', "{{worker}} running"),
                    (f"sum by (worker) ({waiting}{{{WORKER}}})", "{{worker}} waiting"),
                ],
            ),
            lines(
                "Tokens waiting",
                "Tokens of the requests in the queue: how much work stands there, whatever its number of requests.",
                units.Short,
                [(f"sum by (worker) (janus_waiting_tokens{{{WORKER}}})", "{{worker}}")],
            ),
            lines(
                "Tokens a second",
                "Prompt tokens read by encoder and decoder, and tokens generated.",
                "tokens/s",
                [
                    (rate("prompt_tokens_total", WORKER, "worker"), "{{worker}} prompt"),
                    (rate("generated_tokens_total", WORKER, "worker"), "{{worker}} generated"),
                ],
            ),
            lines(
                "Sequences a batch",
                "How full batches and steps run: the mean, and the 95th percentile.",
                units.Short,
                [
                    (mean("batch_size", WORKER, "worker"), "{{worker}} mean"),
                    (quantile(0.95, "batch_size", WORKER, "worker"), "{{worker}} p95"),
                ],
            ),
            lines(
                "Tokens a batch",
                "The mean and the 95th percentile, against the limits max_batch_tokens.",
                units.Short,
                [
                    (mean("batch_tokens", WORKER, "worker"), "{{worker}} mean"),
                    (quantile(0.95, "batch_tokens", WORKER, "worker"), "{{worker}} p95"),
                ],
            ),
            lines(
                "Batches a second",
                "Forward passes of the encoder, steps of the decoder.",
                "ops",
                [(rate("batch_size_count", WORKER, "worker"), "{{worker}}")],
            ),
        ],
        "KV cache": [
            lines(
                "Usage",
                "Share of the blocks in use. At 100 % requests wait for others to end.",
                units.PercentUnit,
                [(f"janus_kv_cache_usage_ratio{{{WORKER}}}", "{{worker}} {{model}}")],
                limit=0.95,
                top=1,
            ).span(12),
            lines(
                "Blocks by state",
                "Every block of the cache is in exactly one state.",
                units.Short,
                [(f"sum by (state) (janus_kv_cache_blocks{{{WORKER}}})", "{{state}}")],
                is_stacked=True,
            ).span(12),
        ],
        "Workers": [
            states(),
            lines(
                "Start, by phase",
                "What the time between a worker's start and its first request went to.",
                units.Seconds,
                [('janus_startup_phase_seconds{worker=~"$worker"}', "{{worker}} {{phase}}")],
            ).height(6),
            labels_of(
                "Builds",
                "Which version serves where, on which device, with which kernel and arithmetic.",
                "janus_build_info",
                ("worker",),
            ),
            labels_of(
                "Models", "The weights that serve, by their digest.", f"janus_model_info{{{WORKER}}}", ("instance",)
            ),
        ],
    }


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def board() -> dashboard.Dashboard:
    made = (
        dashboard.Dashboard("Janus")
        .uid("janus")
        .description("Encoder and decoder behind one gateway.")
        .tags(["janus"])
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-30m", "now")
        .refresh("10s")
        .readonly()
        .with_variable(variable("model", "Model", "label_values(janus_requests_total, model)"))
        .with_variable(variable("worker", "Worker", "label_values(janus_worker_up, worker)"))
    )
    panel_id = 0
    for title, panels in rows().items():
        panel_id += 1
        made.with_row(dashboard.Row(title).id(panel_id))
        for panel in panels:
            panel_id += 1
            made.with_panel(panel.id(panel_id))
    return made


def rendered() -> str:
    """The file's text."""
    return json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(board().build())), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    TARGET.write_text(rendered())
