"""The arithmetic of scheduling and batching imports the standard library and the error tree, nothing else."""

import sys

import grimp

PURE = (
    "services.decoder.sequence",
    "services.decoder.block_manager",
    "services.decoder.scheduler",
    "services.decoder.work_clock",
    "services.encoder.batcher",
    "services.common.errors",
)


def test_pure_modules() -> None:
    graph = grimp.build_graph("services", include_external_packages=True, cache_dir=None)
    allowed = set(sys.stdlib_module_names) | set(PURE)
    strangers = {module: sorted(graph.find_modules_directly_imported_by(module) - allowed) for module in PURE}
    assert {module: found for module, found in strangers.items() if found} == {}
