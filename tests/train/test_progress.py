import io

import pytest
from rich.console import Console

from crate_jax.train.progress import Progress


class _Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return _Clock()


def test_speed_and_eta_leave_out_what_was_paused(clock):
    progress = Progress(20, 100, batch_size=32, clock=clock)
    with progress.paused("compiling"):
        clock.now += 1000
    clock.now += 10
    progress.update(40, {})
    with progress.paused("evaluating"):
        assert progress.doing == "evaluating"
        clock.now += 500
    assert progress.doing == "training"
    assert progress.seconds == 10
    assert progress.images_per_second == 20 * 32 / 10
    assert progress.eta_seconds == 60 * 10 / 20
    timing = progress.timing(40)
    assert timing["timing/seconds"] == 10 and timing["timing/images_per_second"] == 64
    assert timing["timing/peak_memory_gib"] > 0


def test_time_is_left_out_when_what_was_paused_fails(clock):
    progress = Progress(0, 10, batch_size=1, clock=clock)
    with pytest.raises(OSError), progress.paused("saving"):
        clock.now += 7
        raise OSError
    assert progress.seconds == 0 and progress.doing == "compiling"


def test_before_the_first_step_there_is_no_eta(clock):
    out = io.StringIO()
    progress = Progress(5, 10, batch_size=1, console=Console(file=out), clock=clock)
    progress.update(5, {})
    assert progress.eta_seconds != progress.eta_seconds and "ETA -" in out.getvalue()


def test_off_a_terminal_an_update_is_one_line_where_asked(clock):
    out = io.StringIO()
    console = Console(file=out, width=40)
    with Progress(0, 4000, batch_size=8, console=console, clock=clock) as progress:
        clock.now += 10
        progress.update(1000, {"loss": 1.23456, "accuracy": 0.5}, line=False)
        assert out.getvalue() == ""
        progress.update(2000, {"loss": 0.25})
    (line,) = out.getvalue().splitlines()
    assert line.startswith("step 2,000/4,000  50 %  ETA 0:00:10  1,600 images/s  loss 0.25")
    assert "accuracy 0.5" in line and line.endswith("GiB")


def test_on_a_terminal_the_bar_shows_step_and_what_is_being_done(clock):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Progress(0, 10, batch_size=8, console=console, clock=clock) as progress:
        progress.update(5, {"loss": 2.0})
        with progress.paused("evaluating"):
            progress._live.refresh()
    text = out.getvalue()
    assert "evaluating" in text and "step 5/10" in text and "loss 2" in text


def test_without_a_console_nothing_is_shown(clock, capsys):
    with Progress(0, 10, batch_size=8, clock=clock) as progress:
        progress.update(5, {"loss": 2.0})
    assert capsys.readouterr().out == ""


def test_step_time_wait_and_mfu_are_of_the_steps_since_the_last_timing(clock):
    progress = Progress(0, 100, batch_size=4, step_flops=3e12, peak_flops=1e12, clock=clock)
    clock.now += 50
    progress.timing(5)
    with progress.waiting():
        clock.now += 2
    with progress.paused("saving"):
        clock.now += 1000
    clock.now += 38
    timing = progress.timing(15)
    assert timing["timing/step_seconds"] == 4  # 40 s for 10 steps
    assert timing["timing/data_wait_share"] == 2 / 40
    assert timing["timing/mfu"] == pytest.approx(10 * 3 / 40)
    assert timing["timing/images_per_second"] == 15 * 4 / 90
    assert progress.timing(15)["timing/step_seconds"] == 4  # no step since: what was known


def test_a_wait_behind_which_the_devices_work_is_none(clock):
    progress = Progress(0, 100, batch_size=4, clock=clock)
    for busy, seconds in ((True, 5), (False, 2)):
        with progress.waiting(lambda busy=busy: busy):
            clock.now += seconds
    clock.now += 13
    assert progress.timing(2)["timing/data_wait_share"] == 2 / 20


def test_without_a_peak_there_is_no_mfu(clock):
    progress = Progress(0, 100, batch_size=4, step_flops=3e12, clock=clock)
    clock.now += 50
    assert "timing/mfu" not in progress.timing(5)


def test_the_line_shows_mfu_and_a_wait_worth_knowing(clock):
    out = io.StringIO()
    console = Console(file=out, width=200)
    with Progress(
        0, 10, batch_size=8, console=console, step_flops=1e12, peak_flops=1e12, clock=clock
    ) as progress:
        with progress.waiting():
            clock.now += 1
        clock.now += 3
        progress.timing(2)
        progress.update(2, {})
    assert "MFU 50.0 %" in out.getvalue() and "waiting for data 25 %" in out.getvalue()
