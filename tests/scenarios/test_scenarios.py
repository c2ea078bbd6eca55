"""Every transcript happens again as it is written; `--rewrite` writes what happens now, and the diff is to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.player import Player, steps_of, written

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 6


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_is_written_happens_again(path: Path, is_rewriting: bool) -> None:
    text = path.read_text(encoding="utf-8")
    opening, steps = steps_of(text)
    player = Player()
    played = written(opening, [(commands, player.play(commands)) for commands, _ in steps])
    player.site.machine.check()
    if is_rewriting:
        path.write_text(played, encoding="utf-8")
        return
    assert played == text, "run with --rewrite and read the diff"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_opens_with_why_it_exists(path: Path) -> None:
    opening, steps = steps_of(path.read_text(encoding="utf-8"))
    assert all(line.startswith("# ") for line in opening.splitlines())
    assert len(opening) > 80
    assert steps


def test_a_transcript_that_is_wrong_is_found_out() -> None:
    player = Player()
    assert player.play("volume vol 0-3") == "volume vol: 4 blocks are written"
    text = written("# why", [("volume vol 0-3", "volume vol: 5 blocks are written")])
    opening, steps = steps_of(text)
    again = Player()
    assert written(opening, [(c, again.play(c)) for c, _ in steps]) != text


def test_a_transcript_is_divided_and_put_together_again() -> None:
    text = "# why\n# more\n\nrun\n----\nheard\nmore\n\ncut A 1\n----\n"
    assert written(*steps_of(text)) == text
