"""Progress off a terminal: plain lines, at a calm pace, with percent and ETA; on one: bars."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from posttrain.train.progress import Progress, spell_seconds


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def plain(out: io.StringIO, clock: Clock) -> Progress:
    return Progress(Console(file=out, width=40), every_seconds=5, clock=clock)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3599.7, "1 h"),
        (7440, "2 h 4 min"),
        (97_200, "1 d 3 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert spell_seconds(seconds) == words


def test_plain_lines_have_percent_eta_speed_and_metrics(out, clock):
    """20 steps at 2 s and 600 tokens each: after 5 steps 25 %, 15 * 2 s left, 300 tokens/s."""
    with plain(out, clock) as progress, progress.track("sft", 20) as track:
        for step in range(5):
            clock.now += 2
            track.advance(tokens=600, metrics={"loss": 2.0 - step / 4})
        assert track.line() == "sft: 5/20 steps, 25 %, ETA 30 s, 300 tokens/s, loss 1"
        assert track.seconds_left() == pytest.approx(30)


def test_lines_come_every_few_seconds_only_and_are_never_wrapped(out, clock):
    with plain(out, clock) as progress, progress.track("a stage with a rather long name", 100) as track:
        for _ in range(100):
            clock.now += 1
            track.advance(metrics={"loss": 0.123456})
    lines = out.getvalue().splitlines()
    assert lines[0] == "a stage with a rather long name: 100 steps"
    assert lines[-1] == "a stage with a rather long name: done in 1 min 40 s, loss 0.1235"
    shares = [line.split(", ")[1] for line in lines[1:-1]]
    assert shares == [f"{share} %" for share in range(5, 100, 5)]
    assert "\x1b" not in out.getvalue()


def test_resumed_work_does_not_count_into_the_speed(out, clock):
    """90 of 100 steps were done before; one step took 4 s, so 9 are left at 4 s."""
    with plain(out, clock) as progress, progress.track("grpo", 100, completed=90) as track:
        assert track.seconds_left() is None
        clock.now += 4
        track.advance()
        assert track.seconds_left() == pytest.approx(36)
    assert "grpo: 100 steps, 90 done before" in out.getvalue()


def test_the_eta_follows_a_change_of_speed(out, clock):
    with plain(out, clock) as progress, progress.track("x", 200) as track:
        for _ in range(100):
            clock.now += 10
            track.advance()
        for _ in range(40):
            clock.now += 1
            track.advance()
        assert track.seconds_left() == pytest.approx(60)


def test_nested_work_is_named_after_its_stage(out, clock):
    with (
        plain(out, clock) as progress,
        progress.track("grpo", 2),
        progress.track("generate", 10, unit="rows") as part,
    ):
        clock.now += 6
        part.advance(3)
    assert "grpo › generate: 3/10 rows, 30 %, ETA 14 s" in out.getvalue()
    assert "generate: done" not in out.getvalue()


def test_an_interrupted_stage_says_where_it_stopped(out, clock):
    with pytest.raises(KeyboardInterrupt), plain(out, clock) as progress, progress.track("dpo", 9) as track:
        track.advance(4)
        raise KeyboardInterrupt
    assert "dpo: stopped at 4/9 after 0.0 s" in out.getvalue()


def test_warnings_are_shown_once_counted_and_kept_per_stage(out, clock):
    with plain(out, clock) as progress:
        progress.warn("before any stage")
        with progress.track("sft", 1) as sft, progress.track("generate", 1):
            for _ in range(3):
                progress.warn("a [bold]row[/bold] was too long")
        with progress.track("dpo", 1) as dpo:
            progress.warn("odd pair")
    assert sft.warnings == ["a [bold]row[/bold] was too long (3 times)"]
    assert dpo.warnings == ["odd pair"]
    assert progress.warnings == ["before any stage", *sft.warnings, "odd pair"]
    assert out.getvalue().count("a [bold]row[/bold] was too long") == 1


def test_a_warning_that_comes_again_belongs_to_its_stage_too(out, clock):
    with plain(out, clock) as progress:
        progress.warn("slow")
        progress.warn("slow")
        assert progress.take_warnings() == ["slow (2 times)"]
        progress.warn("slow")
        assert progress.take_warnings() == ["slow"]
        assert progress.take_warnings() == []
        assert progress.warnings == ["slow (3 times)"]


def test_a_terminal_gets_bars(out, clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=out, force_terminal=True, width=120)
    with Progress(console, clock=clock) as progress:
        with progress.track("sft [odd]", 4) as track:
            with progress.track("generate", 2) as part:
                part.advance(2)
            clock.now += 8
            track.advance(4, tokens=80, metrics={"loss": 1.5})
        progress.warn("careful")
    shown = out.getvalue()
    assert "\x1b[" in shown
    assert "sft [odd]" in shown and "4/4 steps" in shown and "100 %" in shown
    assert "10 tokens/s, loss 1.5" in shown
    assert "careful" in shown


def test_nothing_to_do_is_no_division_by_zero(out, clock):
    with plain(out, clock) as progress, progress.track("empty", 0) as track:
        assert track.line() == "empty: 0/0 steps, 0 %"
