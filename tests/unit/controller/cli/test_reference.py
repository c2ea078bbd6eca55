from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.reference import page
from controller.operator_verbs import VERBS

DOCS = Path(__file__).resolve().parents[4] / "docs"
REFERENCE = DOCS / "cli.md"


def test_the_reference_is_not_stale(is_rewriting: bool) -> None:
    """Write it anew with `python -m controller.cli.reference > docs/cli.md`, or with --rewrite."""
    if is_rewriting:
        REFERENCE.write_text(page(), encoding="utf-8")
    assert REFERENCE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    "words",
    [
        "## `ctl submit`",
        "### `ctl volume create`",
        "- `--block-size [512|4096]`: Bytes of a logical block. [default: 512]",
        "ctl submit restore [OPTIONS] BACKUP",
        "| 130 | interrupted |",
    ],
)
def test_the_page_has_commands_options_and_exit_codes(words: str) -> None:
    assert words in page()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_described_with_its_arguments(verb: str) -> None:
    """What `ctl` may ask and what the controller answers are written down in one place."""
    text = (DOCS / "operator-interface.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{verb}` |")]
    missing = [name for name in VERBS[verb] if f"`{name}`" not in row]
    assert not missing
