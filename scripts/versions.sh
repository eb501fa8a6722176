#!/bin/sh
# Tests the oldest and the newest supported versions. The results are in docs/versions.md.
#
#   sh scripts/versions.sh           all of the following; or some of them by name:
#   sh scripts/versions.sh oldest    Python 3.10, every direct dependency at its lower bound
#   sh scripts/versions.sh newest    Python 3.13, everything at its newest release
#   sh scripts/versions.sh comfyui   the oldest supported ComfyUI, with its own requirements
#   sh scripts/versions.sh beside    requirements.txt changes nothing that ComfyUI has installed
#
# Needs uv (pip install uv), a network, and up to 7 GB in out/versions/ at a time.
# Stops at the first failure and keeps that environment.
set -eu

folder=$(pwd)/out/versions
tests="tests/test_import_rules.py tests/core tests/rewards tests/trust/test_hostile_adapters.py
    tests/training/test_trainer.py tests/training/test_families.py"
oldest_comfyui=$(sed -n 's/^requires-comfyui = ">=\([0-9.]*\)".*/\1/p' pyproject.toml)
oldest_transformers=4.50.3  # allowed by ComfyUI

say() { printf 'versions: %s\n' "$*" >&2; }

# environment PYTHON: creates an empty environment in $venv
environment() {
    rm -rf "$venv"
    uv venv --quiet --seed --python "$1" "$venv"
}

install() { uv pip install --quiet --python "$venv/bin/python" "$@"; }

show() {
    uv pip freeze --quiet --python "$venv/bin/python" |
        grep -E '^(torch|torchvision|diffusers|transformers|peft|accelerate|numpy)=' >&2
}

oldest() {
    environment 3.10
    install --resolution lowest-direct -e '.[train,rewards,test]'
    show
    # shellcheck disable=SC2086  # several names
    "$venv/bin/pytest" $tests
}

newest() {
    environment 3.13
    install --upgrade -e '.[train,rewards,test]'
    show
    # shellcheck disable=SC2086
    "$venv/bin/pytest" $tests
}

comfyui() {
    environment 3.12
    install --no-deps --require-hashes -r locks/torch.txt -r locks/project.txt
    install --no-deps --no-build-isolation -e .
    comfyui=$("$venv/bin/python" tests/comfyui/fetch_comfyui.py "$oldest_comfyui")
    install -r "$comfyui/requirements.txt"
    # The workflow files have an output of SaveImage that older versions of ComfyUI lack.
    COMFYUI_PATH=$comfyui "$venv/bin/pytest" tests/comfyui \
        -m "not browser" -k "not links_and_slots"
}

# beside: without torch, which requirements.txt must not name anyway
beside() {
    for transformers in "transformers==$oldest_transformers" transformers; do
        environment 3.12
        install setuptools  # fetch_comfyui.py builds with it
        comfyui=$("$venv/bin/python" tests/comfyui/fetch_comfyui.py)
        grep -vE '^torch' "$comfyui/requirements.txt" >"$folder/comfyui.txt"
        install -r "$folder/comfyui.txt" "$transformers"
        uv pip freeze --quiet --python "$venv/bin/python" | sort >"$folder/before.txt"
        "$venv/bin/python" -m pip install --quiet -r requirements.txt
        uv pip freeze --quiet --python "$venv/bin/python" | sort >"$folder/after.txt"
        if [ -n "$(comm -23 "$folder/before.txt" "$folder/after.txt")" ]; then
            say "beside ComfyUI with $transformers, requirements.txt changes:"
            diff "$folder/before.txt" "$folder/after.txt" >&2 || true
            return 1
        fi
        say "beside ComfyUI with $transformers, requirements.txt changes nothing"
    done
}

if ! command -v uv >/dev/null; then
    say "uv is missing; install it with: pip install uv"
    exit 1
fi
mkdir -p "$folder"
[ $# -gt 0 ] || set -- oldest newest comfyui beside
for part in "$@"; do
    case $part in
    oldest | newest | comfyui | beside) ;;
    *)
        say "unknown part '$part', choose from oldest, newest, comfyui, beside"
        exit 2
        ;;
    esac
    say "$part"
    venv=$folder/$part
    "$part"
    rm -rf "$venv"
done
