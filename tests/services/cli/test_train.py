"""`janus train` as a command: a user's own data becomes an adapter that a worker serves."""

import subprocess
import sys
from pathlib import Path

import small_models

RECIPE = """
name = "mood"
objective = "classification"
data = "mood.tsv"
output = "adapters/mood"
seed = 1
[tuning]
method = "lora"
rank = 4
[optimization]
num_epochs = 3
batch_tokens = 128
learning_rate = 1e-3
weight_decay = 0.0
warmup_ratio = 0.1
[validation]
ratio = 0.2
[options]
labels = ["sad", "glad"]
max_input_tokens = 32
"""


def janus(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from services.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    base = small_models.save(small_models.bert(), tmp_path / "base")
    (tmp_path / "mood.toml").write_text(RECIPE)
    lines = [f"{'glad' if i % 2 else 'sad'}\tw{10 + i % 2} w{20 + i}" for i in range(60)]
    (tmp_path / "mood.tsv").write_text("\n".join(["label\ttext", *lines]) + "\n")
    done = janus("train", str(tmp_path / "mood.toml"), "--base", str(base), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "adapters/mood").iterdir()}
    assert made == {"adapter.json", "adapter.safetensors", "figures.json"}
    assert not list(tmp_path.glob("adapters/*.state"))
    assert "accuracy" in done.stdout


def test_what_can_not_be_trained_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mood.toml").write_text(RECIPE.replace("rank = 4", "rnak = 4"))
    failed = janus("train", str(tmp_path / "mood.toml"))
    assert failed.returncode == 1
    assert "missing: tuning.rank; unknown: tuning.rnak" in failed.stderr
    assert "Traceback" not in failed.stderr
