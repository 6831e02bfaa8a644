"""Every command of the README runs: on tiny data, with tiny models, otherwise as written."""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic.release import write_release

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
    "--config.model.vision.integration_depth=1",
    "--config.model.vision.stem_widths=(8,16,32)",
    "--config.data.frames.video=2",
    "--config.data.frames.live=2",
    "--config.eval.frames.video=2",
    "--config.eval.frames.live=2",
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


def shop(folder: Path) -> None:
    """A table of 40 products, an item of each in every domain, and its photos of noise."""
    rng, rows = np.random.default_rng(1), ["product,domain,item,text,images"]
    (folder / "photos").mkdir()
    for i, (number, domain) in enumerate(product(range(40), ("page", "video", "live"))):
        names = [f"{domain}-{number}-{frame}.jpg" for frame in range(1 if domain == "page" else 2)]
        for name in names:
            photo = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(photo).save(folder / "photos" / name)
        rows.append(f'SKU-{number},{domain},{i},"Product {number}, {domain}",{"|".join(names)}')
    put(folder / "items.csv", "\n".join(rows) + "\n")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without telling."""

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder in which the README's paths lie here, with what is there at the start, and where images are served."""
    folder = tmp_path_factory.mktemp("readme")
    release = write_release(folder / "rope", train_products=12, test_products=8, image_side=32, seed=0)
    grocery_checkout(folder / "GroceryStoreDataset")
    shop(folder)
    (folder / "runs").mkdir()
    (folder / "runs/rope_sigmoid").symlink_to("rope")
    with ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=release / "images")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield {"folder": str(folder), "server": f"http://localhost:{server.server_port}/"}
        server.shutdown()


PATHS = re.compile(
    r"^((?:--[a-z._]+=)?)(\.\./)?((?:data|runs|exports|embeddings)/\w+|rope|photos|\w+\.csv|Grocery\w+)$"
)


def words_of(command: str, places: dict[str, str]) -> list[str]:
    """The words behind ./run.sh, with places put in and sizes made tiny."""
    program, *words = shlex.split(command)
    assert program == "./run.sh"
    words = [PATHS.sub(rf"\g<1>{places['folder']}/\g<3>", word) for word in words]
    if words[0] == "demo":
        sizes = ["--train_products=12", "--test_products=8", "--image_side=32"]
        return [*words, f"--root={places['folder']}/root", *sizes, *TINY_RUN]
    if words[0] == "grocery":
        return [*words, f"--root={places['folder']}/root", *TINY_RUN]
    if words[0] == "download":
        return [*words, f"--url_prefix={places['server']}", "--rate=2000"]
    if words[0] == "test":
        return [*words, "tests/test_domains.py"]
    if "--dry_run" in words:
        nothing = ["--config.data.data_dir=/nowhere", "--config.data.tokenizer=nobody/nothing"]
        return [*words, *TINY_RUN, "--config.train.batch_size=16", *nothing]
    return [*words, *TINY_RUN] if words[0] == "train" else words


def test_the_readme_shows_the_main_commands():
    assert {shlex.split(command)[1] for command in COMMANDS} == {
        "demo",
        "test",
        "grocery",
        "catalog",
        "download",
        "table",
        "build",
        "verify",
        "inspect",
        "train",
        "eval",
        "compare",
        "embed",
        "search",
        "export",
        "tfds",
    }


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--distributed" not in c])
def test_a_command_of_the_readme_runs(run_sh, places, command):
    """In the README's order: later commands find what earlier ones made."""
    done = run_sh(*words_of(command, places))
    assert done.returncode == 0, done.stdout + done.stderr
    if "--dry_run" in command:  # without data, tokenizer, work directory or that many devices
        assert "= 16 devices in all\nbatch       16 products, 1 a share" in done.stdout
        assert "300 (from config.data.vocab_size: nobody/nothing is not on this machine)" in done.stdout


def run_example(name: str, ending: str, places: dict[str, str]) -> str:
    """What the example that names a folder prints, with one more line, as a program that a user would write."""
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


def test_the_embedder_of_the_readme_embeds(places):
    for name, colour in (("dress", "red"), ("shoes", "black")):
        Image.new("RGB", (40, 30), colour).save(Path(places["folder"]) / f"photos/{name}.jpg")
    (example,) = [code for code in EXAMPLES if "Embedder" in code]
    done = subprocess.run(
        [sys.executable, "-c", example + "print(similarity.shape)\n"],
        cwd=places["folder"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "(2, 1)\n", done.stderr


def test_every_example_of_the_readme_is_run():
    assert len(EXAMPLES) == 3


def test_two_processes_train_as_one(start_run_sh, places, tmp_path):
    """The README's command for several hosts, on this one, ends with the metrics of a single process."""
    (command,) = [c for c in COMMANDS if "--distributed" in c]
    words = [word for word in words_of(command, places) if not word.startswith(("--workdir", "--process="))]
    processes = [start_run_sh(*words, f"--workdir={tmp_path}", f"--process={i}") for i in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, output + errors
    run = Path(places["folder"]) / "runs/rope"
    one, two = (json.loads((place / "metrics.jsonl").read_text().splitlines()[-1]) for place in (run, tmp_path))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
