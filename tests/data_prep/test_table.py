import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_command_builds_a_catalog_once(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "z.jpg").touch()
    table = tmp_path / "items.csv"
    table.write_text("split,product,domain,item,images\ntrain,m,video,30,z.jpg|a.jpg\ntrain,b,video,30,z.jpg|b.jpg\n")
    command = [sys.executable, "-m", "data_prep.table", f"--table={table}", f"--images={tmp_path / 'images'}"]
    command.append(f"--out={tmp_path / 'catalog'}")
    first, second = (subprocess.run(command, capture_output=True, text=True, cwd=ROOT) for _ in range(2))
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    assert "train   video               1           0             3          0            1" in first.stdout
    assert "nothing to do" in second.stdout
    with table.open("a") as file:
        file.write("\n")
    third = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (third.returncode, third.stderr.count("\n")) == (1, 1)
    assert third.stderr.startswith("table: ")
    assert "is a catalog of another source (table differ)" in third.stderr
