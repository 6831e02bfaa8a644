"""Every command of the README runs: on tiny data, with tiny models, otherwise as written."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic import write_release

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
TINY_RUN = [
    "--config.data.image_size=32",
    "--config.data.vocab_size=300",
    "--config.data.tokenizer=",
    "--config.model.dtype=float32",  # for a close comparison of runs; bfloat16 rounds at the third digit
    "--config.model.vision.init_from=",
    "--config.model.text.init_from=",
    "--config.model.vision.width=32",
    "--config.model.vision.depth=1",
    "--config.model.vision.heads=2",
    "--config.model.vision.output_width=32",
    "--config.model.vision.integration_heads=2",
    "--config.model.vision.stem_widths=(8,16,32)",
    "--config.model.text.width=24",
    "--config.model.text.depth=1",
    "--config.model.text.heads=2",
    "--config.train.batch_size=4",
    "--config.train.steps=3",
    "--config.optimizer.warmup_steps=1",
    "--config.eval.batch_size=16",
    "--config.eval.ways=3",
    "--config.eval.episodes=10",
]


def put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def grocery_checkout(folder: Path) -> Path:
    """Five classes in the layout of GroceryStoreDataset, with photos of noise."""
    data, rng = folder / "dataset", np.random.default_rng(0)

    def photo(name: str) -> None:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(data / name)

    table = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    table += "Iconic Image Path (str),Product Description Path (str)\n"
    lists = {"train": "", "val": ""}
    for i in range(5):
        table += f"Kind-{i},{i},Food,0,/iconic/{i}.jpg,/iconic/{i}.txt\n"
        photo(f"iconic/{i}.jpg")
        put(data / f"iconic/{i}.txt", f"Product number {i}.\n")
        for split, numbers in (("train", range(1, 9)), ("val", range(9, 17))):
            for number in numbers:
                photo(f"{split}/{i}_{number:03}.jpg")
                lists[split] += f"{split}/{i}_{number:03}.jpg, {i}, 0\n"
    put(data / "classes.csv", table)
    for split, lines in lists.items():
        put(data / f"{split}.txt", lines)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the README's paths stand for here."""
    folder = tmp_path_factory.mktemp("readme")
    release = write_release(folder / "rope", train_products=12, test_products=8, image_side=32, seed=0)
    return {
        "../GroceryStoreDataset": str(grocery_checkout(folder / "checkout")),
        "--release=rope": f"--release={release}",
        "--manual_dir=rope": f"--manual_dir={release}",
        "--data_dir=data/rope": f"--data_dir={folder}/data",
        "--config.data.data_dir=data/rope": f"--config.data.data_dir={folder}/data",
        "--workdir=runs/rope": f"--workdir={folder}/run",
        "runs/rope": f"{folder}/run",
        "runs/rope_sigmoid": f"{folder}/run",
        "--out=comparison.csv": f"--out={folder}/comparison.csv",
        "--out=embeddings/rope": f"--out={folder}/embeddings/rope",
        "--out=exports/rope": f"--out={folder}/exports/rope",
        "folder": str(folder),
        "root": str(folder / "root"),
    }


def words_of(command: str, places: dict[str, str]) -> list[str]:
    """The words behind ./run.sh, with places put in and sizes made tiny."""
    program, *words = shlex.split(command)
    assert program == "./run.sh"
    words = [places.get(word, word) for word in words]
    if words[0] == "demo":
        sizes = ["--train_products=12", "--test_products=8", "--image_side=32"]
        return [*words, f"--root={places['root']}", *sizes, *TINY_RUN]
    if words[0] == "grocery":
        return [*words, f"--root={places['root']}", *TINY_RUN]
    if words[0] == "test":
        return [*words, "tests/test_domains.py"]
    if "--dry_run" in words:
        return [*words, *TINY_RUN, "--config.train.batch_size=16"]
    return [*words, *TINY_RUN] if words[0] == "train" else words


def test_the_readme_shows_the_main_commands():
    assert {shlex.split(command)[1] for command in COMMANDS} == {
        "demo",
        "test",
        "grocery",
        "build",
        "train",
        "eval",
        "compare",
        "embed",
        "export",
        "tfds",
    }


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--distributed" not in c])
def test_a_command_of_the_readme_runs(run_sh, places, command):
    """In the README's order: later commands find what earlier ones made."""
    done = run_sh(*words_of(command, places))
    assert done.returncode == 0, done.stdout + done.stderr


def run_example(name: str, ending: str, places: dict[str, str]) -> str:
    """What the example that names a folder prints with one more line, as a program of its own which a user writes."""
    (example,) = [code for code in EXAMPLES if f'"{name}' in code]
    code = example.replace(name, f"{places['folder']}/{name}") + ending
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_exported_model_of_the_readme_embeds(places):
    assert run_example("exports/rope", "print(similarity.round(3).diagonal())\n", places) == "[1. 1.]\n"


def test_pandas_polars_and_duckdb_read_the_embeddings_as_the_readme_says(places):
    manifest = json.loads((Path(places["folder"]) / "embeddings/rope/manifest.json").read_text())
    items = manifest["items"]
    printed = run_example(
        "embeddings/rope", "print(scores.shape, abs(scores).max() < 1.001, counts.fetchall())\n", places
    )
    expected = [(domain, items[domain]) for domain in sorted(items)]
    assert printed == f"{(items['page'], items['video'])} True {expected}\n"


def test_every_example_of_the_readme_is_run():
    assert len(EXAMPLES) == 2


def test_two_processes_train_as_one(start_run_sh, places, tmp_path):
    """The README's command for several hosts, on this one, ends with the metrics of a single process."""
    (command,) = [c for c in COMMANDS if "--distributed" in c]
    words = [word for word in words_of(command, places) if not word.startswith(("--workdir", "--process="))]
    processes = [start_run_sh(*words, f"--workdir={tmp_path}", f"--process={i}") for i in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, output + errors
    run = Path(places["--workdir=runs/rope"].removeprefix("--workdir="))
    one, two = (json.loads((place / "metrics.jsonl").read_text().splitlines()[-1]) for place in (run, tmp_path))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
