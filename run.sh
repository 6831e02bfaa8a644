#!/usr/bin/env bash
# Sets up .venv on first use, then runs a command in it. ./run.sh help lists the commands.
# Paths are relative to the folder of the caller; only lint, test and docs run in the checkout.
set -euo pipefail
unset CDPATH

# Prints the folder of this file, which may be called through links.
checkout() {
  local file=${BASH_SOURCE[0]} target
  while [ -L "$file" ]; do
    target=$(readlink -- "$file")
    case $target in /*) file=$target ;; *) file=$(dirname -- "$file")/$target ;; esac
  done
  cd -P -- "$(dirname -- "$file")" && pwd
}

ROOT=$(checkout)
VENV=$ROOT/.venv
LOG=$ROOT/.cache/install.log
LOCK=$ROOT/.cache/install.lock

help() {
  cat <<'TEXT'
./run.sh demo [--root=DIR] [OPTION…]   write a synthetic release, build it, train on it and evaluate;
                                       with --videos: the same with its clips as video files
./run.sh grocery PATH [OPTION…]        the same on a checkout of GroceryStoreDataset, a data set of real photos
./run.sh abo PATH --out=DIR            make a catalog of a download of Amazon Berkeley Objects
./run.sh synthetic --out=DIR …         write a synthetic release
./run.sh catalog --release=DIR …       check, join and order the text files of a release; invalid lines are listed
./run.sh table --table=FILE …          make the same kind of catalog from a table of your own products
./run.sh segment --video=FILE …        cut a long recording into the clips of a table
./run.sh download --catalog=DIR …      fetch the images of a catalog into tar shards
./run.sh build --release=DIR …         build array records from a release, or from a --catalog
./run.sh tfds build …                  the same with the options of TFDS's own command
./run.sh verify --data_dir=DIR         read array records in full and report damage
./run.sh inspect --data_dir=DIR        summarize a built data set as a table and an HTML page;
                                       with --check_split: products, images and near-duplicates shared by splits
./run.sh train --config=FILE …         train a model; the same command resumes an interrupted run;
                                       with --dry_run: report parameters, memory and operations, and do not train
./run.sh tensorboard --logdir=DIR      show the curves and pictures of runs in a browser
./run.sh eval --workdir=DIR …          evaluate a run: retrieval and few-shot classification
./run.sh compare RUN RUN…              compare the metrics of evaluated runs and mark significant differences
./run.sh mteb --workdir=DIR …           score a run on tasks of the package mteb, such as ABOI2VRetrieval
./run.sh checkpoints verify DIR        verify checkpoints
./run.sh embed --workdir=DIR --out=…   write the embeddings of all items as Parquet
./run.sh search --workdir=DIR …        find similar items, by item, images or text;
                                       ./run.sh search serve --workdir=DIR: a search page on this machine
./run.sh export --workdir=DIR --out=…  export the weights and programs of a run, to serve without this code
./run.sh push --export=DIR --repo=…    publish an export on the Hugging Face hub
./run.sh lint                          check style, format and types
./run.sh test [--quick] [OPTION…]      run the tests, with --quick without the slow ones; options go to pytest
./run.sh docs                          build the documentation site in site/
./run.sh results                       write the tables of results in README and docs from benchmarks/results/tables
./run.sh setup [EXTRA…]                install requirements.txt and each requirements-EXTRA.txt, and run nothing
./run.sh lock                          write requirements-lock.txt anew, with the newest versions that fit
./run.sh wheelhouse [DIR]              download the locked packages of all commands for users, into DIR or wheelhouse

Each command takes --help. Options of demo and grocery go to training: ./run.sh demo --config.train.steps=200
except --train_products=N, --test_products=N, --image_side=PIXELS, --seed=N and --recipe=N of demo, which go to the release.
COPE_PYTHON=/path/to/python uses an environment of your own and installs nothing.
COPE_JAX='jax[cuda12]' installs this build of JAX instead of the one for the device that is found.
COPE_NEWEST=1 installs the newest versions that the requirements allow, instead of those of requirements-lock.txt.
--offline, with any command, installs from the folder COPE_WHEELHOUSE, by default wheelhouse, and downloads nothing.
TEXT
}

say() { printf '\n▸ %s\n' "$*"; }
fail() { printf 'run.sh: %s\n' "$*" >&2; exit 1; }

find_python() {
  local name
  for name in python3 python python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$name"; return; fi
  done
  fail "no Python 3.11 or newer found; install one, or set COPE_PYTHON to an environment of your own"
}

# Prints the JAX package to install: COPE_JAX, or the build for the device of this machine.
jax_package() {
  if [ -n "${COPE_JAX:-}" ]; then echo "$COPE_JAX"
  elif nvidia-smi -L >/dev/null 2>&1; then echo 'jax[cuda13]'
  elif compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null || [ -n "${TPU_NAME:-}" ]; then
    echo 'jax[tpu]'
  else echo jax; fi
}

# setup [EXTRA…]: creates .venv with requirements.txt and each requirements-EXTRA.txt, unless that is done, and sets PYTHON.
setup() {
  if [ -n "${COPE_PYTHON:-}" ]; then
    PYTHON=$(command -v "$COPE_PYTHON") || fail "COPE_PYTHON is $COPE_PYTHON, which is not a program"
    case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
    return
  fi
  PYTHON=$VENV/bin/python
  local package stamp
  package=$(jax_package)
  stamp="$VENV/installed-$(cat "$ROOT"/requirements*.txt <(echo "$package" "$@" "${COPE_NEWEST:-}") | cksum | tr ' ' -)"
  [ -e "$stamp" ] && return
  mkdir -p "$(dirname "$LOG")"
  install "$stamp" "$package" "$@" 9>"$LOCK"
}

# install STAMP PACKAGE EXTRA…: installs into .venv, one call at a time: several tasks of a job may start at once.
# Descriptor 9 holds the lock and releases it when it is closed, no matter how the call ends. The subshell runs in the
# checkout: Python imports modules from the current folder.
install() (
  stamp=$1 package=$2 files=(requirements.txt)
  shift 2
  cd "$ROOT"
  if command -v flock >/dev/null; then  # macOS has none
    flock -n 9 || { say "waiting for another call that sets up $VENV"; flock 9 || fail "cannot lock $LOCK"; }
    [ -e "$stamp" ] && return
  fi
  if ! "$PYTHON" -c 'import pip' 2>/dev/null; then
    finder=$(find_python)
    say "creating $VENV with $("$finder" --version)"
    "$finder" -m venv --clear "$VENV" >"$LOG" 2>&1 ||
      fail "could not create $VENV; the reason is in $LOG (on Debian: apt install python3-venv)"
  fi
  for extra in "$@"; do files+=("requirements-$extra.txt"); done
  say "installing ${files[*]} and $package into $VENV (takes a few minutes the first time)"
  : >"$LOG"
  [ -n "${COPE_NEWEST:-}" ] || pip_locked install "$package" "$@"
  # What is not locked: torch, and other builds of JAX.
  pip install "${files[@]/#/-r}" "$package"
  # On all cores. Files that are no modules of this version of Python do not matter.
  "$PYTHON" -m compileall -q -j 0 "$VENV/lib" >>"$LOG" 2>&1 || true
  touch "$stamp"
)

# pip_locked COMMAND PACKAGE EXTRA…: installs or downloads the locked versions of what PACKAGE and these extras need.
pip_locked() {
  local command=$1 sets=base extra
  case $2 in 'jax[cuda13]') sets+='|cuda' ;; 'jax[tpu]') sets+='|tpu' ;; esac
  for extra in "${@:3}"; do sets+="|$extra"; done
  grep -E "# (.* )?($sets)( |\$)" "$ROOT/requirements-lock.txt" >"$ROOT/.cache/locked.txt"
  pip "$command" --no-deps --require-hashes -r "$ROOT/.cache/locked.txt"
}

# wheelhouse DIR: downloads into DIR what --offline needs on a machine like this one.
wheelhouse() {
  setup
  mkdir -p "$1" "$(dirname "$LOG")"
  export PIP_DEST
  PIP_DEST=$(cd -- "$1" && pwd)
  say "downloading into $PIP_DEST"
  pip_locked download "$(jax_package)" search serve qdrant download video tensorboard wandb
  pip download setuptools wheel  # which build the packages that are sources
}

pip() {
  [ "$1" != install ] || set -- "$@" --no-compile  # that takes pip twice as long as `compileall`
  "$PYTHON" -m pip "$@" --disable-pip-version-check >>"$LOG" 2>&1 ||
    fail "installation failed: $(grep -m1 -i error "$LOG" || echo 'unknown error'); see $LOG"
}

# Programs are compiled once and shared by later runs.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}" PYTHONUNBUFFERED=1

command=${1:-help}
[ $# -gt 0 ] && shift
case " $* " in *" --offline "*)
  wheels=${COPE_WHEELHOUSE:-$PWD/wheelhouse}
  [ -d "$wheels" ] || fail "--offline: no folder $wheels; make it with ./run.sh wheelhouse on a machine with a network"
  wheels=$(cd -- "$wheels" && pwd)
  export PIP_NO_INDEX=1 PIP_FIND_LINKS="file://${wheels// /%20}" HF_HUB_OFFLINE=1
  for word; do shift; [ "$word" = --offline ] || set -- "$@" "$word"; done ;;
esac
# The other commands handle --help themselves.
case "$command: $* " in demo:*" --help "* | grocery:*" --help "* | lint:*" --help "* | docs:*" --help "*) help; exit ;; esac
# Commands replace this shell, so that signals reach them.
case $command in
  grocery)
    case ${1:-} in "" | --*) fail "grocery needs the path of a checkout of GroceryStoreDataset: ./run.sh grocery PATH" ;; esac
    [ -d "$1" ] || fail "no folder $1: give the path of a checkout of GroceryStoreDataset"
    setup ;;
  demo) case " $* " in *" --videos "*) setup video ;; *) setup ;; esac ;;
  train) case "$*" in *train.wandb*) setup wandb ;; *) setup ;; esac ;;
  tensorboard) setup tensorboard; exec "$PYTHON" -m tensorboard.main "$@" ;;
  abo | synthetic | catalog | table | verify | eval | compare | checkpoints | embed | export | push) setup ;;
  download) setup download ;;
  search) case "$*" in push*) setup search serve video qdrant ;; *) setup search serve video ;; esac ;;
  inspect) setup search ;;
  mteb) setup video mteb ;;
  build) case "$*" in *--beam_pipeline_options*) setup video beam ;; *) setup video ;; esac ;;
  segment) setup video ;;
  tfds)
    [ "${1:-}" = build ] || fail "of TFDS's commands only 'build' works without TensorFlow: ./run.sh tfds build …"
    setup ;;
  lint)
    setup search serve qdrant download video wandb beam mteb dev
    cd "$ROOT"
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    exec "$PYTHON" -m basedpyright --pythonpath "$(command -v "$PYTHON")" ;;
  test)
    setup search serve qdrant download video wandb beam mteb accelerators dev
    if [ "${1:-}" = --quick ]; then shift; set -- -m 'not slow' "$@"; fi
    cd "$ROOT"
    # Each of two workers runs whole files, whose tests share fixtures.
    exec "$PYTHON" -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@" ;;
  setup) setup "$@"; exit ;;
  lock) setup; cd "$ROOT"; pip install uv; exec "$PYTHON" .ci/lock.py "$@" ;;
  wheelhouse) wheelhouse "${1:-wheelhouse}"; exit ;;
  results) setup; cd "$ROOT"; exec "$PYTHON" -m benchmarks.tables "$@" ;;
  docs) setup docs; cd "$ROOT"; exec "$PYTHON" -m mkdocs build --strict "$@" ;;
  help | --help | -h) help; exit ;;
  *) help >&2; fail "unknown command '$command'" ;;
esac
# Modules come from the checkout, and none from the current folder.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
exec "$PYTHON" -m cope_jax "$command" "$@"
