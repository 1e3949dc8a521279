from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest_cli import Cli

from trace_opt.cli import docs

COMMANDS = dict(docs.commands())


def test_every_command_is_documented_in_the_page() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page()
