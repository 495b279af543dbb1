import contextlib
import io
import time

import pytest

from diffusion_jax.report.progress import Pace, progress


class Clock:
    """Seconds, moved by hand."""

    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 120 columns; standard output is it inside `contextlib.redirect_stdout(terminal)`."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def run(bar, clock, steps, seconds_per_step):
    for step in steps:
        clock.now += seconds_per_step
        bar.update(step, loss=0.5)


def test_plain_lines_are_few_and_tell_everything(capsys, clock):
    with progress(10_000, start=4_000, units_per_step=128, clock=clock) as bar:
        run(bar, clock, range(4_001, 4_501), 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # 50 s: the first update, every 10 s, the end
    assert lines[-1] == "train 4,500/10,000 (45%)  1,280 images/s  loss 0.5  0:00:50 elapsed  0:09:10 left"


def test_a_long_run_has_a_line_a_minute(capsys, clock):
    with progress(100_000, clock=clock) as bar:
        run(bar, clock, range(1, 36_001), 1)
    lines = capsys.readouterr().out.splitlines()
    assert 600 < len(lines) < 800  # ten hours


def test_the_last_line_is_not_printed_twice(capsys, clock):
    with progress(3, clock=clock) as bar:
        run(bar, clock, [1, 2, 3], 10)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/3", "2/3", "3/3"]


def test_a_run_that_fails_says_where(capsys, clock):
    with contextlib.suppress(ZeroDivisionError), progress(100, clock=clock) as bar:
        run(bar, clock, range(1, 8), 0.01)
        raise ZeroDivisionError
    assert capsys.readouterr().out.splitlines()[-1].startswith("train 7/100 (7%)")


def test_compilation_does_not_count_once_there_is_a_second_update(clock):
    with progress(1_000, units_per_step=8, clock=clock, show=False) as bar:
        assert bar.rate is None
        assert bar.seconds_left is None
        run(bar, clock, [10], 100)
        assert bar.rate is None  # of one update nobody knows how much was compilation
        assert bar.seconds_left is None
        run(bar, clock, [20], 1)
        assert bar.rate == pytest.approx(10 * 8)
        assert bar.seconds_left == pytest.approx(98)


def test_the_rate_is_that_of_the_last_half_minute(clock):
    with progress(10**6, clock=clock, show=False) as bar:
        run(bar, clock, range(1, 1_001), 0.001)  # fast, then slow
        run(bar, clock, range(1_001, 1_101), 1)
        assert bar.rate == pytest.approx(1)


def test_one_slow_step_does_not_make_the_rate_jump(clock):
    with progress(10**6, clock=clock, show=False) as bar:
        run(bar, clock, range(1, 301), 0.1)
        run(bar, clock, [301], 3)
        assert 9 < bar.rate < 10
        run(bar, clock, range(302, 304), 0.001)
        assert 9 < bar.rate < 10


def test_the_window_stays_small_however_fast_the_steps():
    pace = Pace()
    for step in range(1, 200_001):
        pace.add(step, step * 1e-3)
    assert pace.steps_per_second == pytest.approx(1_000)
    assert len(pace._seen) < 1_000


@pytest.mark.parametrize(("total", "start"), [(0, 0), (100, 100)])
def test_nothing_left_to_do(total, start, capsys, clock):
    with progress(total, start=start, clock=clock) as bar:
        assert bar.seconds_left == 0
    assert capsys.readouterr().out == ""
    with progress(total, start=start, clock=clock) as bar:
        bar.update(total)
    assert capsys.readouterr().out.startswith(f"train {total}/{total}")


def test_a_clock_that_stands_still_gives_no_rate(capsys, clock):
    with progress(10, clock=clock) as bar:
        run(bar, clock, [1, 2], 0)
        assert bar.rate is None
    assert "images/s" not in capsys.readouterr().out


def test_items_of_a_sampling_run(capsys, clock):
    with progress(256, unit="images", description="sample", clock=clock) as bar:
        for done in (64, 128, 192, 256):
            clock.now += 32
            bar.update(done)
    assert (
        capsys.readouterr().out.splitlines()[-1] == "sample 256/256 (100%)  2 images/s  0:02:08 elapsed  0:00:00 left"
    )


def test_notes_stand_on_lines_of_their_own(capsys, clock):
    with progress(10, clock=clock) as bar:
        bar.update(1)
        bar.note("wrote [bold]samples.png")
    assert capsys.readouterr().out.splitlines()[1] == "wrote [bold]samples.png"


def test_hidden_prints_nothing(capsys, clock):
    with progress(10, clock=clock, show=False) as bar:
        run(bar, clock, [1, 2], 1)
        bar.note("text")
    assert capsys.readouterr().out == ""


def test_terminal_gets_a_bar_with_notes_above(terminal, clock):
    with contextlib.redirect_stdout(terminal), progress(10_000, start=4_000, units_per_step=128, clock=clock) as bar:
        run(bar, clock, range(4_001, 4_011), 0.1)
        bar.note("wrote [bold]samples.png")
        run(bar, clock, range(4_011, 4_021), 0.1)
    text = terminal.getvalue()
    assert "wrote [bold]samples.png\n" in text
    last = [line for line in text.splitlines() if "images/s" in line][-1]
    for part in ("━", "4,020/10,000", "1,280 images/s", "loss 0.5", "0:09:58 left"):
        assert part in last


class Loss:
    """A value on a device: to read it is to wait for it."""

    reads = 0

    def __float__(self):
        self.reads += 1
        return 0.5


@pytest.mark.parametrize(("out", "reads"), [(Terminal, 40), (io.StringIO, 1)])
def test_a_fast_loop_does_not_wait_for_every_loss(monkeypatch, clock, out, reads):
    monkeypatch.setenv("TERM", "xterm")
    loss = Loss()
    with contextlib.redirect_stdout(out()), progress(100_000, clock=clock) as bar:
        for step in range(1, 10_001):  # 10 s
            clock.now += 0.001
            bar.update(step, loss=loss)
    assert reads <= loss.reads <= reads + 3


def test_a_loss_that_cannot_be_read_does_not_leave_the_terminal_without_cursor(terminal, clock):
    with contextlib.suppress(ZeroDivisionError), contextlib.redirect_stdout(terminal), progress(9, clock=clock) as bar:
        bar.update(1, loss=0.5)
        bar.update(2, loss=type("Failed", (), {"__float__": lambda self: 1 / 0})())
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize(("total", "start"), [(0, 0), (100, 100)])
def test_terminal_with_nothing_left_to_do(terminal, clock, total, start):
    with contextlib.redirect_stdout(terminal), progress(total, start=start, clock=clock) as bar:
        bar.update(total)
    assert f"{total}/{total}" in terminal.getvalue()


def test_a_dumb_terminal_gets_lines(terminal, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with contextlib.redirect_stdout(terminal), progress(10, clock=clock) as bar:
        bar.update(10)
    assert terminal.getvalue() == "train 10/10 (100%)  0:00:00 elapsed  0:00:00 left\n"


def doing(bar, clock, seconds, what="drawing a grid"):
    """What is done for so many seconds, the last of which is said before it ends."""
    with bar.doing(what):
        for _ in range(2):
            clock.now += seconds / 2
            time.sleep(0.2)  # the thread that tells looks every 0.05 s


def test_what_is_done_between_steps_is_said_and_from_the_second_time_on_how_long_still(capsys, clock, monkeypatch):
    with progress(100, clock=clock) as bar:
        monkeypatch.setattr(type(bar), "_every", 0.05)
        doing(bar, clock, 20)
        first = capsys.readouterr().out.splitlines()
        doing(bar, clock, 16)
        second = capsys.readouterr().out.splitlines()
        doing(bar, clock, 30, "evaluating fd")
        third = capsys.readouterr().out.splitlines()
    assert first[-1] == "drawing a grid  0:00:20 so far"
    assert "drawing a grid  0:00:08 so far  about 0:00:12 left" in second
    assert third[-1] == "evaluating fd  0:00:30 so far"


def test_on_a_terminal_it_has_a_bar_of_its_own_until_it_ends(terminal, clock):
    with contextlib.redirect_stdout(terminal), progress(100, clock=clock) as bar:
        run(bar, clock, [7], 1)
        bar._every = 0.05
        doing(bar, clock, 20)
        assert len(bar._bar.tasks) == 1
    text = terminal.getvalue()
    assert "drawing a grid" in text
    assert "7/100" in text


def test_short_work_is_not_spoken_of(capsys, clock):
    with progress(100, clock=clock) as bar, bar.doing("drawing a grid"):
        clock.now += 5
    assert capsys.readouterr().out == ""


def test_what_comes_once_is_left_out_of_the_rate_and_of_the_time_left(clock):
    """A step of 2 s each; in the fourth and the seventh a new size compiles, for a minute."""
    with progress(100, units_per_step=10, show=False, clock=clock) as bar:
        for step in range(1, 11):
            if step in (1, 4, 7):
                with bar.doing("compiling", once=True):
                    clock.now += 60
                    bar.update(step)
            else:
                clock.now += 2
                bar.update(step)
        assert bar.rate == pytest.approx(5)
        assert bar.seconds_left == pytest.approx(180)
        with bar.doing("a grid"):  # which comes again
            clock.now += 14
        clock.now += 2
        bar.update(11)
        assert bar.rate == pytest.approx(10 * 8 / 30)
