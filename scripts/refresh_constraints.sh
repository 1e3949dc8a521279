#!/usr/bin/env bash
# Write constraints.txt from what pip resolves for pyproject.toml, in a fresh environment.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder"
"$folder/bin/python" -m pip install -q "torch==2.13.0"
"$folder/bin/python" -m pip install -q -e ".[dev]"
# a local version such as 2.13.0+cpu is on no other index
"$folder/bin/python" -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$//' >constraints.txt
