#!/usr/bin/env bash
# Sets Trainbook up and uses it.
#
#   bash setup_colab.sh run     make .venv, install, execute training.ipynb from top to bottom
#   bash setup_colab.sh test    the same with the test tools, then every check and the whole test suite
#   bash setup_colab.sh lab     open the notebook in JupyterLab
#   bash setup_colab.sh notebook  write dist/training-colab.ipynb, one file that carries the library, for Colab and Kaggle
#   bash setup_colab.sh docs    build the documentation as a site in the folder site
#   bash setup_colab.sh         in Colab only: install what the notebook still needs, touch nothing else
#
# TRAINBOOK_VENV names another environment folder than .venv. pip's own configuration (pip.conf, PIP_*) applies.
# `test` makes a second, small environment beside it (.venv-colab) with Colab's versions of the notebook stack.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
CALLED_FROM="$PWD"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"
LOG=""
cd "$ROOT"

say() { printf 'trainbook: %s\n' "$*"; }
stop() { printf 'trainbook: %s\n' "$*" >&2; exit 1; }
refuse() { printf 'trainbook: %s\n' "$*" >&2; exit 2; }

# ---- Python and system packages ----

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if new_enough "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  stop "Python 3.11 or newer is needed; python3 is $(python3 --version 2>/dev/null || echo 'not there')." \
    "Install it and run this again"
}

open_log() { LOG="$(mktemp "${TMPDIR:-/tmp}/trainbook-setup.XXXXXX")"; }
close_log() { rm -f "$LOG"; }

apt_install() {  # package...   Fails when this is not a Debian, or not root.
  [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null || return 1
  say "installing $* with apt-get"
  apt-get update -qq >>"$LOG" 2>&1 &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >>"$LOG" 2>&1
}

has_command() {  # name...   True when one of them is there.
  local name
  for name in "$@"; do
    if command -v "$name" >/dev/null; then return 0; fi
  done
  return 1
}

# ---- The environment ----

venv_folder() {
  local folder="${TRAINBOOK_VENV:-$ROOT/.venv}"
  [[ "$folder" == /* ]] || folder="$CALLED_FROM/$folder"
  printf '%s\n' "$folder"
}

make_venv() {
  local python version
  if [[ -f "$VENV/pyvenv.cfg" ]]; then
    if new_enough "$PYTHON" && "$PYTHON" -m pip --version >/dev/null 2>&1; then return; fi
    stop "the environment $VENV has no working Python 3.11 or newer with pip; delete that folder and run this again"
  fi
  [[ ! -e "$VENV" || -z "$(ls -A "$VENV")" ]] ||
    stop "$VENV exists and is not a Python environment; name another folder in TRAINBOOK_VENV"
  python="$(find_python)"
  if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    apt_install "python${version}-venv" ||
      stop "$python cannot make environments; install the system package python${version}-venv and run this again"
  fi
  say "creating $VENV with $("$python" --version)"
  "$python" -m venv "$VENV" >>"$LOG" 2>&1 || stop "$python could not create $VENV: $(tail -n 1 "$LOG")"
}

pip_install() {  # what, pip's arguments...
  local what="$1" reason
  shift
  say "installing $what"
  if "$PYTHON" -m pip install --disable-pip-version-check --no-input "$@" >>"$LOG" 2>&1; then return; fi
  reason="$(grep -m 1 '^ERROR' "$LOG" || tail -n 1 "$LOG")"
  stop "installing $what failed: $reason (whole log: $LOG); check the network and free space and run this again"
}

has_nvidia() { [[ -e /dev/nvidia0 ]] || command -v nvidia-smi >/dev/null; }

reachable() {  # URL   The thread bounds name look-ups too, which no socket time-out does.
  "$PYTHON" - "$1" <<'PY'
import os, sys, threading, urllib.request

answers = []

def ask():
    try:
        request = urllib.request.Request(sys.argv[1], method="HEAD")
        answers.append(urllib.request.urlopen(request, timeout=3).status)
    except (OSError, ValueError):
        pass

thread = threading.Thread(target=ask, daemon=True)
thread.start()
thread.join(3)
os._exit(0 if answers else 1)
PY
}

install_torch() {  # First and alone, so that the extra index can serve nothing but torch and what torch needs.
  if ! has_nvidia && reachable "$TORCH_CPU_INDEX/torch/"; then
    pip_install "torch (CPU build)" -c constraints.txt --extra-index-url "$TORCH_CPU_INDEX" torch
  else
    pip_install "torch" -c constraints.txt torch
  fi
}

fingerprint() {
  "$PYTHON" - requirements.txt constraints.txt pyproject.toml <<'PY'
import hashlib, pathlib, sys
print(hashlib.sha256(b"".join(pathlib.Path(name).read_bytes() for name in sys.argv[1:])).hexdigest())
PY
}

is_installed() {  # extra   `test` holds all of `notebook` and of `docs`.
  [[ -f "$STAMP" ]] && grep -qx -e "test $(fingerprint)" -e "$1 $(fingerprint)" "$STAMP"
}

set_up() {  # extra
  VENV="$(venv_folder)"
  PYTHON="$VENV/bin/python"
  STAMP="$VENV/trainbook-installed"
  make_venv
  if is_installed "$1"; then return; fi
  install_torch
  pip_install "the packages of requirements.txt and of the extra '$1'" -c constraints.txt -e ".[$1]"
  printf '%s %s\n' "$1" "$(fingerprint)" >"$STAMP"
}

# ---- run, lab ----

need_notebook() { [[ -f training.ipynb ]] || stop "training.ipynb is not in $ROOT; restore it from the repository"; }

run_notebook() {
  need_notebook
  open_log
  set_up notebook
  close_log
  say "executing training.ipynb"
  "$PYTHON" -m cli.run_notebook training.ipynb
}

open_lab() {
  local as_root=()
  need_notebook
  open_log
  set_up notebook
  close_log
  # JupyterLab refuses root unless told; in a container there is nobody else. It listens on this machine only.
  if [[ "$(id -u)" == 0 ]]; then as_root=(--allow-root); fi
  "$PYTHON" -m jupyterlab "${as_root[@]+"${as_root[@]}"}" training.ipynb
}

# ---- notebook ----

write_notebook() {
  need_notebook
  open_log
  set_up notebook
  close_log
  "$PYTHON" -m cli.notebook_alone
}

# ---- docs ----

build_site() {  # folder
  # Without --quiet, which hides warnings from --strict too. The variable silences an advertisement of another generator.
  NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --site-dir "$1"
}

build_docs() {
  open_log
  set_up docs
  close_log
  say "building the documentation"
  build_site "$ROOT/site" || stop "the documentation could not be built; what is wrong is named above"
  say "the documentation is in $ROOT/site; open $ROOT/site/index.html"
}

# ---- test ----

FAILED=""

part() {  # name, command...   Runs to the end whatever fails: one call shows everything that is wrong.
  local name="$1"
  shift
  say "$name"
  if ! "$@"; then FAILED="${FAILED:+$FAILED, }$name"; fi
}

system_packages_for_tests() {
  if ! has_command g++ clang++; then
    apt_install g++ || say "no C++ compiler: tests of compiled models will be skipped; install the system package g++"
  fi
  if ! has_command chromium chromium-browser google-chrome; then
    apt_install chromium || say "no Chromium: browser tests will be skipped; install the system package chromium"
  fi
  if ! has_command initdb && ! compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null; then
    apt_install postgresql || say "no PostgreSQL: tests with it will be skipped; install the system package postgresql"
  fi
}

colab_world() {  # Colab's versions of ipykernel, IPython and ipywidgets, to click in. Without them those tests are skipped.
  local folder="$VENV-colab" list="tests/browser/colab_versions.txt"
  if [[ -f "$folder/trainbook-versions" ]] && cmp -s "$list" "$folder/trainbook-versions"; then return; fi
  say "installing Colab's notebook versions into $folder"
  rm -rf "$folder"
  if "$PYTHON" -m venv "$folder" >>"$LOG" 2>&1 &&
    "$folder/bin/python" -m pip install --disable-pip-version-check --no-input -r "$list" >>"$LOG" 2>&1; then
    cp "$list" "$folder/trainbook-versions"
  else
    say "Colab's notebook versions could not be installed ($(grep -m 1 '^ERROR' "$LOG" || tail -n 1 "$LOG")): tests with them are skipped"
    rm -rf "$folder"
  fi
}

check_documentation() {
  local folder status=0
  folder="$(mktemp -d)"
  build_site "$folder" || status=1
  rm -rf "$folder"
  return "$status"
}

check_notebook() {
  [[ -f training.ipynb ]] || { say "training.ipynb is not in $ROOT; restore it from the repository"; return 1; }
  # A copy in a folder of its own: a finished run of the same name beside the notebook would leave nothing to train.
  local folder status=0
  folder="$(mktemp -d)"
  cp training.ipynb "$folder"
  PYTHONPATH="$ROOT" "$PYTHON" -m pytest -c pyproject.toml --rootdir "$ROOT" --nbmake --nbmake-timeout=1200 -o faulthandler_timeout=0 \
    "$folder/training.ipynb" || status=1
  rm -rf "$folder"
  return "$status"
}

# More tests than this that fail are no accident.
MOST_UNSTABLE=3

failed_tests() {  # The node ids of the tests that failed in the last run, one a line.
  "$PYTHON" - <<'PY'
import json, pathlib
record = pathlib.Path(".pytest_cache/v/cache/lastfailed")
print("\n".join(json.loads(record.read_text())) if record.exists() else "")
PY
}

run_suite() {  # The whole suite; then, where few tests failed, those alone. What passes then is named as unstable.
  local status=0 failed
  # Not reordered: xdist would begin with the modules of most tests, and the notebook's and the browser's, few and long, would
  # come last, one worker idle beside them.
  "$PYTHON" -m pytest --cache-clear -n "$(workers)" --dist loadscope --no-loadscope-reorder || status=$?
  [[ "$status" == 1 ]] || return "$status"
  failed="$(failed_tests)" || return 1
  [[ -n "$failed" && "$(wc -l <<<"$failed")" -le "$MOST_UNSTABLE" ]] || return 1
  say "running what failed once more, alone"
  TRAINBOOK_FAILED_FIRST="$failed" "$PYTHON" -m pytest -n 0 --last-failed --last-failed-no-failures none
}

workers() { "$PYTHON" -c 'import os; print(max(1, min(4, os.cpu_count() or 1)))'; }

run_tests() {
  open_log
  set_up test
  system_packages_for_tests
  colab_world
  close_log
  part "ruff" "$PYTHON" -m ruff check --output-format concise .
  part "format" "$PYTHON" -m ruff format --check utils widgets cli
  part "mypy" "$PYTHON" -m mypy
  part "import contracts" "$VENV/bin/lint-imports" --no-logo
  part "documentation" check_documentation
  part "notebook" check_notebook
  # The suite comes last: the output ends with pytest's closing line, and tests/kit/failed_before.py names failed parts and
  # unstable tests above it.
  TRAINBOOK_FAILED_PARTS="$FAILED" part "test suite" run_suite
  [[ -z "$FAILED" ]]
}

# ---- Colab ----

in_colab() { [[ -n "${COLAB_RELEASE_TAG:-}" ]] || "$PYTHON" -c 'import google.colab' >/dev/null 2>&1; }

colab_packages() {  # plan FOLDER | report FOLDER
  "$PYTHON" - "$@" <<'PY'
"""plan: write what is missing and what must not move. report: say what moved."""
import json, re, sys
from importlib.metadata import distributions
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:  # pip always carries a copy
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

FROZEN = re.compile(r"torch.*|numpy|nvidia-.*|pandas|ipywidgets|ipykernel")
NEVER_REPLACED = ("torch", "numpy")

installed = {}
for distribution in distributions():
    if name := distribution.metadata["Name"]:
        installed.setdefault(canonicalize_name(name), distribution.version)  # the first on the path is the one imported

action, folder = sys.argv[1], Path(sys.argv[2])
if action == "plan":
    lines = (line.split("#")[0].strip() for line in Path("requirements.txt").read_text().splitlines())
    unmet = {}
    for requirement in map(Requirement, filter(None, lines)):
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        if name not in installed or not requirement.specifier.contains(installed[name], prereleases=True):
            unmet[name] = str(requirement)
    for name in NEVER_REPLACED:
        if name in unmet:
            have = f"{name} {installed[name]}" if name in installed else f"no {name}"
            sys.exit(f"trainbook: {unmet[name]} is needed and this runtime has {have}, which is never replaced here; "
                     "choose the newest runtime version under Runtime > Change runtime type")
    frozen = [f"{n}=={v}" for n, v in sorted(installed.items()) if FROZEN.fullmatch(n) and n not in unmet]
    (folder / "frozen.txt").write_text("".join(line + "\n" for line in frozen))
    (folder / "unmet.txt").write_text("".join(line + "\n" for line in unmet.values()))
    (folder / "before.json").write_text(json.dumps(installed))
else:
    before = json.loads((folder / "before.json").read_text())
    moved = [f"{n} {v} -> {installed.get(n, 'removed')}" for n, v in before.items() if installed.get(n) != v]
    if any(line.split()[0] in NEVER_REPLACED for line in moved):
        print(f"trainbook: restart the runtime now (Runtime > Restart session): {', '.join(moved)}")
    elif moved:
        print(f"trainbook: updated {', '.join(moved)}; restart the runtime if the notebook had imported one of them")
PY
}

set_up_colab() {
  local folder
  PYTHON="$(find_python)"
  in_colab || refuse "which one? bash setup_colab.sh run | test | lab | notebook | docs (no word is for Colab, and this is not Colab)"
  open_log
  folder="$(mktemp -d)"
  trap 'rm -rf "'"$folder"'"' EXIT
  colab_packages plan "$folder"
  if [[ -s "$folder/unmet.txt" ]]; then
    pip_install "$(paste -sd ' ' "$folder/unmet.txt")" -c "$folder/frozen.txt" -r "$folder/unmet.txt"
    colab_packages report "$folder"
  fi
  close_log
  say "ready: run the notebook's cells from top to bottom"
}

main() {
  [[ $# -le 1 ]] || refuse "one word at most, got: $*; the words are run, test, lab, notebook, docs"
  case "${1-}" in
    run) run_notebook ;;
    test) run_tests ;;
    lab) open_lab ;;
    notebook) write_notebook ;;
    docs) build_docs ;;
    "") set_up_colab ;;
    *) refuse "unknown word '$1'; the words are run, test, lab, notebook, docs (and none, in Colab)" ;;
  esac
}

# One line, read at once: this file may be replaced by an update while it runs.
main "$@"; exit
