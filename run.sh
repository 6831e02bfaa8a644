#!/usr/bin/env bash
# One door to everything: sets up .venv at the first call, then runs a command. ./run.sh help lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=.venv
LOG=.cache/install.log
LOCK=.cache/install.lock

help() {
  cat <<'TEXT'
./run.sh demo [--root=DIR] [OPTION…]   write a synthetic release, build it, train on it, evaluate: the whole way once
./run.sh grocery PATH [OPTION…]        the same on a checkout of GroceryStoreDataset: real photos
./run.sh synthetic --out=DIR …         write a synthetic release
./run.sh catalog --release=DIR …       check, join and order a release's text files; bad lines are counted and listed
./run.sh table --table=FILE …          the same catalog from a table of your own products
./run.sh download --catalog=DIR …      fetch a catalog's images, politely, into tar shards
./run.sh build --release=DIR …         release → array records (TFDS, without TensorFlow); or from a --catalog
./run.sh verify --data_dir=DIR         read array records whole and report damage
./run.sh inspect --data_dir=DIR        a table and a page of what is in them; --check_split: what train and test share
./run.sh tfds build …                  the same by TFDS's own command
./run.sh train --config=FILE …         train; the same command goes on where a run stopped
                                       with --dry_run it only tells what that takes: parameters, memory, arithmetic
./run.sh eval --workdir=DIR …          retrieval and few-shot tables of a run
./run.sh compare RUN RUN…              metrics of evaluated runs, and which differ by more than chance explains
./run.sh embed --workdir=DIR --out=…   embeddings of all items as Parquet
./run.sh search --workdir=DIR …        items like others, by id, pictures or text: a table and a page with the pictures;
                                       ./run.sh search serve --workdir=DIR: a search page on this machine
./run.sh export --workdir=DIR --out=…  weights and programs of a run, to serve without this code
./run.sh lint | test [OPTION…]         ruff | the tests (options go to pytest)

Each takes --help. Options of demo and grocery go to training: ./run.sh demo --config.train.steps=200
Of demo's, --train_products=N, --test_products=N, --image_side=PIXELS and --seed=N go to the synthetic release.
COPE_PYTHON=/path/to/python uses an environment of your own and installs nothing.
COPE_JAX='jax[cuda12]' installs that build of JAX instead of the one for the device that is found.
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

# The jax build that is asked for, or the one for the device that is there.
jax_package() {
  if [ -n "${COPE_JAX:-}" ]; then echo "$COPE_JAX"
  elif nvidia-smi -L >/dev/null 2>&1; then echo 'jax[cuda13]'
  elif compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null || [ -n "${TPU_NAME:-}" ]; then
    echo 'jax[tpu]'
  else echo jax; fi
}

# setup FILE: makes .venv with what FILE asks for; does nothing where that is done.
setup() {
  if [ -n "${COPE_PYTHON:-}" ]; then
    command -v "$COPE_PYTHON" >/dev/null || fail "COPE_PYTHON is $COPE_PYTHON, which is no program"
    PYTHON=$COPE_PYTHON
    return
  fi
  PYTHON=$VENV/bin/python
  local package stamp
  package=$(jax_package)
  stamp="$VENV/installed-$(cat requirements*.txt <(echo "$package") | cksum | tr ' ' -)-$1"
  [ -e "$stamp" ] && return
  mkdir -p "$(dirname $LOG)"
  install "$1" "$package" "$stamp" 9>$LOCK
}

# install FILE PACKAGE STAMP: does that, one call at a time, for all tasks of a job may begin on the same .venv.
# Descriptor 9 holds the lock, and gives it back as it closes, however the call ends.
install() {
  local requirements=$1 package=$2 stamp=$3 finder
  if command -v flock >/dev/null; then  # macOS has none
    flock -n 9 || { say "waiting for another call that sets up $VENV"; flock 9 || fail "cannot lock $LOCK"; }
    [ -e "$stamp" ] && return
  fi
  if ! "$PYTHON" -c 'import pip' 2>/dev/null; then
    finder=$(find_python)
    say "making $VENV with $("$finder" --version)"
    "$finder" -m venv --clear $VENV >"$LOG" 2>&1 || fail "could not make $VENV; the reason is in $LOG (on Debian: apt install python3-venv)"
  fi
  say "installing $requirements and $package into $VENV (a few minutes at the first time)"
  "$PYTHON" -m pip install --disable-pip-version-check -r "$requirements" "$package" >"$LOG" 2>&1 ||
    fail "installing failed: $(grep -m1 -i error "$LOG" || echo 'no error named'); all of it is in $LOG"
  touch "$stamp"
}

run() { "$PYTHON" -m "$@"; }

# The settings by which glibc keeps what a step of training on processors has freed. Its temporaries are one block of some
# 500 MB for the demo, which would go back to the system at the end of each step and be faulted in page by page at the
# next: a seventh of a step's processor time.
keep_memory() {
  if [ "$(jax_package)" = jax ]; then echo MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000; fi
}

# options KEY DEFAULT ARG…: the value of --KEY=… among the arguments, else the default.
option() {
  local key=$1 value=$2 argument
  shift 2
  for argument in "$@"; do case $argument in --"$key"=*) value=${argument#*=} ;; esac; done
  echo "$value"
}

# whole_way NAME RELEASE ROOT OPTION…: from a release to the tables.
whole_way() {
  local name=$1 release=$2 root=$3
  shift 3
  say "building array records in $root/data/$name"
  run data_prep.build --release="$release" --data_dir="$root/data/$name"
  say "training configs/$name.py in $root/runs/$name"
  env $(keep_memory) "$PYTHON" -m cope_jax.train --config="configs/$name.py" --workdir="$root/runs/$name" \
    --config.data.data_dir="$root/data/$name" "$@"
  say "evaluating: trained / untrained"
  run cope_jax.evaluate --workdir="$root/runs/$name" --reuse
  printf '\nwork directory: %s\n' "$root/runs/$name"
}

demo() {
  local root release argument training=() writing=()
  root=$(option root . "$@")
  release=$root/data/demo/release
  for argument in "$@"; do
    case $argument in
      --root=*) ;;
      --train_products=* | --test_products=* | --image_side=* | --seed=*) writing+=("$argument") ;;
      *) training+=("$argument") ;;
    esac
  done
  say "writing a synthetic release to $release"
  run data_prep.synthetic --out="$release" ${writing[@]+"${writing[@]}"}
  whole_way demo "$release" "$root" ${training[@]+"${training[@]}"}
}

grocery() {
  local checkout=${1:-} root argument training=()
  case $checkout in "" | --*) fail "grocery needs the path of a checkout of GroceryStoreDataset: ./run.sh grocery PATH" ;; esac
  [ -d "$checkout" ] || fail "no folder $checkout: give the path of a checkout of GroceryStoreDataset"
  shift
  root=$(option root . "$@")
  for argument in "$@"; do case $argument in --root=*) ;; *) training+=("$argument") ;; esac; done
  say "turning $checkout into a release in $root/data/grocery/release"
  run data_prep.sources.grocery --checkout="$checkout" --out="$root/data/grocery/release" --test_list=val
  whole_way grocery "$root/data/grocery/release" "$root" ${training[@]+"${training[@]}"}
}

# Compiled programs are kept over runs; TFDS and transformers need not say which frameworks they miss.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
export TRANSFORMERS_NO_ADVISORY_WARNINGS=1 PYTHONUNBUFFERED=1

command=${1:-help}
[ $# -gt 0 ] && shift
# The others pass --help on to one command of Python.
case "$command: $* " in demo:*" --help "* | grocery:*" --help "* | lint:*" --help "*) help; exit ;; esac
case $command in
  demo | grocery) setup requirements.txt; "$command" "$@" ;;
  # In place of this shell, which would take a scheduler's SIGTERM instead of it, and end before it has saved.
  train) setup requirements.txt; exec env $(keep_memory) "$PYTHON" -m cope_jax.train "$@" ;;
  eval) setup requirements.txt; run cope_jax.evaluate "$@" ;;
  compare | embed | search | export) setup requirements.txt; run "cope_jax.$command" "$@" ;;
  synthetic | catalog | table | verify | inspect) setup requirements.txt; run "data_prep.$command" "$@" ;;
  download) setup requirements-download.txt; exec "$PYTHON" -m data_prep.download "$@" ;;
  build)
    case "$*" in *--beam_pipeline_options*) setup requirements-beam.txt ;; *) setup requirements.txt ;; esac
    run data_prep.build "$@" ;;
  tfds)
    [ "${1:-}" = build ] || fail "of TFDS's commands only 'build' works without TensorFlow: ./run.sh tfds build …"
    shift; setup requirements.txt; run data_prep.tfds_build "$@" ;;
  lint) setup requirements-dev.txt; run ruff check .; run ruff format --check . ;;
  # Two workers, each with whole files: their tests share what was built for the first of them.
  test) setup requirements-dev.txt; run pytest --numprocesses=2 --dist=loadfile "$@" ;;
  help | --help | -h) help ;;
  *) help >&2; fail "unknown command '$command'" ;;
esac
