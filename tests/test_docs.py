"""Every command and Python example of the README and the docs runs: as written, but on tiny data with tiny models."""

import gzip
import io
import json
import re
import shlex
import shutil
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from cope_jax.__main__ import COMMANDS as COPE_COMMANDS
from data_prep.synthetic.release import write_release
from data_prep.synthetic.videos import encode
from tests.conftest import ENVIRONMENT, TINY_DEMO, TINY_RUN, write_siglip2
from tests.forks import command_runner
from tests.hub import TOKEN, StandInHub

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{name}.md" for name in (
    "quickstart", "rope", "catalog", "training", "losses", "pretrained", "hardware", "evaluation", "search",
    "reliability", "troubleshooting", "formats", "concepts", "architecture", "benchmarks", "experiments", "index",
    "scale", "finetuning", "videos", "datasets", "installation",
))]  # fmt: skip


def code_blocks(language: str) -> list[str]:
    """Returns the code blocks of a language in all pages, in the order of PAGES, each once."""
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    return list(dict.fromkeys(block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.S)))


COMMANDS = list(
    dict.fromkeys(line.split("  #")[0].strip() for block in code_blocks("bash") for line in block.splitlines())
)
# The first command line of each command is run by ./run.sh; the others skip the imports, which are the same.
FIRST = {command.split()[1]: command for command in reversed(COMMANDS)}.values()
EXAMPLES = code_blocks("python")
SIGLIP2 = "google/siglip2-base-patch16-224"
SHORT_RUN = [word for word in TINY_RUN if ".train." in word or ".eval." in word or "warmup" in word]


def recording(folder: Path) -> None:
    """Writes a recording of twelve seconds, with a new picture in each, and its subtitles."""
    colors = np.random.default_rng(2).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    folder.mkdir()
    encode(folder / "show.mp4", (simplejpeg.encode_jpeg(picture) for picture in colors))
    put(folder / "show.srt", "1\n00:00:01,000 --> 00:00:04,000\n红色连衣裙\n")


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


def abo(folder: Path) -> None:
    """A packed download of Amazon Berkeley Objects: 40 products, each with a page, a photo and a spin of two frames."""
    rng = np.random.default_rng(3)
    files = {
        "listings/metadata/listings_0.json.gz": "",
        "images/metadata/images.csv.gz": "image_id,height,width,path\n",
    }
    files["spins/metadata/spins.csv.gz"] = "spin_id,azimuth,image_id,height,width,path\n"
    for i in range(40):
        listing = {"item_id": f"B{i:02}", "main_image_id": f"m{i}", "other_image_id": [f"o{i}"], "spin_id": f"s{i}"}
        listing["item_name"] = [{"language_tag": "en_US", "value": f"walnut table {i}"}]
        files["listings/metadata/listings_0.json.gz"] += json.dumps(listing) + "\n"
        files["images/metadata/images.csv.gz"] += f"m{i},32,32,m{i}.jpg\no{i},32,32,o{i}.jpg\n"
        files["spins/metadata/spins.csv.gz"] += f"s{i},36,a{i},32,32,s{i}_1.jpg\ns{i},0,b{i},32,32,s{i}_0.jpg\n"
        for name in (f"images/small/m{i}", f"images/small/o{i}", f"spins/original/s{i}_0", f"spins/original/s{i}_1"):
            files[f"{name}.jpg"] = simplejpeg.encode_jpeg(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    folder.mkdir()
    for part, name in (("listings", "listings"), ("images", "images-small"), ("spins", "spins")):
        with tarfile.open(folder / f"abo-{name}.tar", "w") as tar:
            for path, content in files.items():
                if path.startswith(part):
                    data = gzip.compress(content.encode()) if isinstance(content, str) else content
                    member = tarfile.TarInfo(path)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def mteb_data(folder: Path) -> None:
    """The data of MTEB's task ABOI2VRetrieval, as on the hub: photos, and turntable videos, of 8 products."""
    from datasets import Dataset, Features, Image, Value, Video  # takes a second

    rng, text = np.random.default_rng(4), Value("string")
    photos = [simplejpeg.encode_jpeg(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(24)]
    names = [f"{number}" for number in range(8)]
    folder.mkdir(parents=True)
    for number in range(8):
        encode(folder / f"{number}.mp4", photos[8 + 2 * number : 10 + 2 * number])
    videos = [{"bytes": (folder / f"{name}.mp4").read_bytes(), "path": None} for name in names]
    images = [{"bytes": photo, "path": None} for photo in photos[:8]]
    parts = {
        "queries": ({"id": names, "image": images}, {"id": text, "image": Image()}),
        "corpus": ({"id": names, "video": videos}, {"id": text, "video": Video()}),
        "qrels": (
            {"query-id": names, "corpus-id": names, "score": [1] * 8},
            {"query-id": text, "corpus-id": text, "score": Value("int32")},
        ),
    }
    card = "---\nconfigs:\n"
    for name, (columns, features) in parts.items():
        Dataset.from_dict(columns, Features(features)).to_parquet(folder / name / "test.parquet")
        card += f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/*.parquet\n"
    put(folder / "README.md", f"{card}---\n")


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without logging requests."""

    def log_message(self, *args: object) -> None:
        """Logs nothing."""


class ImageServer(ThreadingHTTPServer):
    """A server that many connections can wait for."""

    request_queue_size = 128


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder that stands in for the user's, with the input data, and a server of ROPE's images."""
    folder = tmp_path_factory.mktemp("docs")
    release = write_release(folder / "rope", train_products=12, test_products=8, image_side=32, seed=0)
    grocery_checkout(folder / "GroceryStoreDataset")
    shop(folder)
    recording(folder / "videos")
    abo(folder / "ABO")
    mteb_data(folder / "hubxrt/ABO-I2V")  # found there, below the current folder, in place of the hub
    write_siglip2(folder / "siglip2")
    (folder / "runs").mkdir()
    (folder / "runs/rope_sigmoid").symlink_to("rope")
    images = ImageServer(("localhost", 0), partial(QuietHandler, directory=release / "images"))
    with images, StandInHub() as hub:
        for server in (images, hub):
            Thread(target=server.serve_forever, daemon=True).start()
        yield {"folder": str(folder), "server": f"http://localhost:{images.server_port}/", "hub": hub.endpoint}
        images.shutdown()
        hub.shutdown()


PATHS = re.compile(
    r"^((?:--[a-z._]+=(?:configs/\w+\.py:)?)?)(\.\./)?((?:data|runs|exports|embeddings)/\w+(?:,scratch)?|rope|ABO|photos|videos|data/demo/release|(?:videos/)?\w+\.(?:csv|html|mp4|srt)|Grocery\w+)$"
)


def words_of(command: str, places: dict[str, str]) -> list[str]:
    """Returns the arguments of ./run.sh, with paths in the test folder and tiny sizes."""
    program, *words = shlex.split(command)
    assert program == "./run.sh"
    words = [PATHS.sub(rf"\g<1>{places['folder']}/\g<3>", word) for word in words]
    if any(SIGLIP2 in word for word in words):  # which sets the sizes of the model
        words = [word.replace(SIGLIP2, f"{places['folder']}/siglip2") for word in words]
        return [*words, *SHORT_RUN] if words[0] == "train" else words
    if words[0] == "demo":
        return [*words, f"--root={places['folder']}", *TINY_DEMO]
    if words[0] == "grocery":
        return [*words, f"--root={places['folder']}", *TINY_RUN]
    if words[0] == "download":
        return [*words, f"--url_prefix={places['server']}", "--rate=2000"]
    if words[0] == "test":
        return [*words, "--numprocesses=0", "tests/data_prep/common/test_domains.py"]
    if "--dry_run" in words:
        nothing = ["--config.data.data_dir=/nowhere", "--config.data.tokenizer=nobody/nothing"]
        return [*words, *TINY_RUN, "--config.train.batch_size=16", *nothing]
    other_domains = any("example" in word or "abo" in word for word in words)
    tiny = [flag for flag in TINY_RUN if not (other_domains and ".frames." in flag)]
    return [*words, *tiny] if words[0] == "train" else words


def test_the_pages_show_the_main_commands():
    shown = {shlex.split(command)[1] for command in COMMANDS}
    assert shown >= {*COPE_COMMANDS} - {"synthetic", "checkpoints", "tfds build"} | {"tfds", "test"}


def test_every_page_is_listed():
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(PAGES) - {"README.md"}


def local_hub(places: dict[str, str]) -> dict[str, Any]:
    """Settings of a process that finds data sets of the hub in the test folder, and models in a stand-in."""
    hub = {"HF_ENDPOINT": places["hub"], "HF_TOKEN": TOKEN, "HF_DATASETS_CACHE": f"{places['folder']}/datasets"}
    return {"cwd": places["folder"], "env": ENVIRONMENT | hub}


@pytest.fixture(scope="module")
def run_forked(tmp_path_factory):
    """A function that runs a command with arguments in a fork of a process that has imported its modules."""
    with command_runner(tmp_path_factory.mktemp("forks"), ENVIRONMENT) as run:
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if "--distributed" not in command])
def test_command_of_the_docs_runs(run_sh, run_forked, demo_root, places, command):
    """Runs the commands in the order of the pages: later ones use what earlier ones wrote."""
    if command == "./run.sh demo":
        shutil.copytree(demo_root, places["folder"], dirs_exist_ok=True)
        return
    words = words_of(command, places)
    if re.search(" (mteb|push) --", command):
        done = run_sh(*words, **local_hub(places))
    else:
        done = run_sh(*words) if command in FIRST or words[0] not in COPE_COMMANDS else run_forked(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    if " mteb " in command:
        assert "ABOI2VRetrieval test default: hit_rate_at_1 " in done.stdout
    if "--dry_run" in command:  # without data, tokenizer, work directory or that many devices
        assert "= 16 devices\nbatch       16 products, 1 per device" in done.stdout
        assert "60 (from config.data.vocab_size, since nobody/nothing is not on this machine)" in done.stdout


# Text that identifies an example → code that follows it in the test, and what that prints.
CHECKS = {
    'Embedder.from_workdir("runs/demo")': ("print(similarity.shape)", "(2, 1)"),
    'Embedder.from_workdir("runs/rope")': ("print(similarity.shape, found.shape)", "(2, 1) (2, 5)"),
    'load("exports/rope")': ("print(similarity.round(3).diagonal())", "[1. 1.]"),
    "pd.read_parquet": (
        "print(scores.shape == (len(pages), len(videos)), abs(scores).max() < 1.001, len(counts.fetchall()))",
        "True True 3",
    ),
    "embed_segments": ("print(segments.vectors.shape, clips.shape)", "(2, 128) (1, 128)"),
    "microsoft/xclip": ("print(config.model.text.init_from)", "hfl/rbt6"),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", CHECKS)
def test_example_of_the_docs_runs(places, text, monkeypatch, capsys):
    for name, color in (("dress", "red"), ("shoes", "black")):
        Image.new("RGB", (40, 30), color).save(Path(places["folder"]) / f"photos/{name}.jpg")
    (example,) = [code for code in EXAMPLES if text in code]
    ending, printed = CHECKS[text]
    monkeypatch.chdir(places["folder"])
    capsys.readouterr()
    exec(f"{example}\n{ending}\n", {})
    assert capsys.readouterr().out == f"{printed}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "printed"), [("quickstart", " of 16 pages find a video"), ("photo_search", "1.000  photos/bag-09-a.jpg\n")]
)
def test_notebook_runs(places, name, printed, monkeypatch, capsys):
    """Runs the Python cells. Commands in other cells are among those of the pages, which ran before."""
    folder = Path(places["folder"]) / "examples"
    folder.mkdir(exist_ok=True)
    if not (folder / "photos").exists():
        (folder / "photos").symlink_to(ROOT / "examples/photos")
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    for cell in json.loads((ROOT / f"examples/{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        code = "".join(cell["source"])
        if code.startswith("!"):
            assert code.replace("!../", "./").removesuffix(" --root=..") in COMMANDS
        elif cell["cell_type"] == "code":
            exec(code, namespace)
    assert printed in capsys.readouterr().out


def test_every_example_is_run():
    assert len(EXAMPLES) == len(CHECKS)


@pytest.mark.slow
def test_two_processes_train_as_one(start_run_sh, places, tmp_path):
    """The command for several hosts, on this one, ends with the metrics of a single process."""
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
