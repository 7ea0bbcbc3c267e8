"""What happens to computers is done here to real runs, in processes of their own; benchmarks/faults.py does more of it."""

import itertools
import math
import os
import random
import re
import resource
import signal
import time
from functools import partial

import pytest
from runs import RUNS, Started, assert_all_whole, result, save_often
from spoiled import READERS

from benchmarks import faults
from gan_mnist import GENERATORS
from utils.known import ImageSet


@pytest.fixture(scope="module")
def whole(digit_folder, tmp_path_factory):
    """By the name of a run: what it leaves uninterrupted, and the seconds it takes."""
    known = {}

    def of(name):
        if name not in known:
            root = tmp_path_factory.mktemp("whole") / "root"
            begun = time.monotonic()
            Started(name, root, digit_folder).end(0)
            known[name] = result(root), time.monotonic() - begun
        return known[name]

    return of


def resumed(name, root, data):
    """Takes a broken run to its end; what it said and what it left."""
    run = Started(name, root, data, "--resume")
    run.end(0)
    return run.output, result(root)


STOPPED_BY = (signal.SIGINT, signal.SIGTERM)


def stopped_by(number):
    """Sends this process a signal in the middle of its second epoch."""
    from utils.run import Run

    log = Run.log

    def stopped(self, **values):
        log(self, **values)
        if self.epoch == 2 and self.done == self.count // 2 and not self.stopping:
            os.kill(os.getpid(), number)

    Run.log = stopped


@pytest.mark.parametrize(("name", "number", "status"), list(zip(RUNS, itertools.cycle(STOPPED_BY), itertools.cycle((130, 143)))))
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_nothing_were(name, number, status, whole, digit_folder, tmp_path):
    run = Started(name, tmp_path / "root", digit_folder, before=partial(stopped_by, number))
    run.end(status)
    assert "stopped, saved:" in run.output
    assert not list(tmp_path.rglob(".unfinished-*"))
    assert_all_whole(tmp_path / "root")
    said, left = resumed(name, tmp_path / "root", digit_folder)
    assert re.search(r"goes on after 1 epochs and \d+ steps", said)
    assert left == whole(name)[0]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_loses_nothing_that_was_complete(name, whole, digit_folder, tmp_path):
    expected, seconds = whole(name)
    root = tmp_path / "root"
    run = Started(name, root, digit_folder, before=save_often)
    chance = random.Random(name)
    if list(RUNS).index(name) % 2:
        run.wait_for_writing(chance)
    else:
        time.sleep(chance.uniform(0.2, seconds))
    run.signal(signal.SIGKILL)
    run.end()
    assert_all_whole(root)
    if list((root / "outputs" / "run").glob("checkpoint*.pt")):
        assert resumed(name, root, digit_folder)[1] == expected
    else:
        Started(name, root, digit_folder).end(0)
        assert result(root) == expected


@pytest.mark.parametrize("name", RUNS)
def test_where_the_newest_checkpoint_is_damaged_the_one_before_serves(name, whole, digit_folder, tmp_path):
    root = tmp_path / "root"
    run = Started(name, root, digit_folder)
    run.wait_for("checkpoint_before.pt")
    run.wait_for("checkpoint.pt")
    run.signal(signal.SIGKILL)
    run.end()
    newest = root / "outputs" / "run" / "checkpoint.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    said, left = resumed(name, root, digit_folder)
    assert "checkpoint.pt is damaged" in said
    assert left == whole(name)[0]


def fill_up():
    """Leaves no room for another checkpoint once there is one."""
    from utils.checkpoints import Checkpoints

    save = Checkpoints.save

    def full(self, state):
        self.wait()
        if self.path.exists():
            size = self.path.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        save(self, state)

    Checkpoints.save = full


def fill_up_straight():
    """The same where states are too large to be copied in memory first."""
    import utils.checkpoints

    utils.checkpoints.BUFFERED = 0
    fill_up()


def turn_read_only():
    """Closes the folder to writing, also to root, once there is a checkpoint in it."""
    from utils.checkpoints import Checkpoints

    save = Checkpoints.save

    def closed(self, state):
        self.wait()
        if not self.path.exists():
            return save(self, state)
        self.path.parent.chmod(0o555)
        if os.getuid() == 0:  # who writes wherever he likes
            os.seteuid(65534)
        try:
            save(self, state)
            self.wait()
        finally:
            os.seteuid(os.getuid())

    Checkpoints.save = closed


@pytest.mark.parametrize(
    ("name", "harm"), [*itertools.product(RUNS, (fill_up, turn_read_only)), ("gan_cifar10_conv", fill_up_straight)]
)
def test_where_files_cannot_be_written_a_run_ends_with_a_sentence_and_goes_on_later(name, harm, whole, digit_folder, tmp_path):
    root = tmp_path / "root"
    run = Started(name, root, digit_folder, before=harm)
    run.end(2)
    assert "can't write" in run.errors
    assert len(run.errors.splitlines()) == 1
    (root / "outputs" / "run").chmod(0o755)
    assert_all_whole(root)
    said, left = resumed(name, root, digit_folder)
    assert "goes on after 1 epochs" in said
    assert left == whole(name)[0]


@pytest.mark.parametrize(("name", "file"), list(zip(RUNS, itertools.cycle(["metrics.csv", "epoch_0003.png"]))))
def test_a_folder_that_vanishes_comes_back(name, file, whole, digit_folder, tmp_path):
    root = tmp_path / "root"
    run = Started(name, root, digit_folder)
    run.wait_for(file)
    (root / "outputs").rename(tmp_path / "gone")  # at once, where removing file by file would race with the run's own files
    run.end(0)
    assert result(root) == whole(name)[0]
    resumed(name, root, digit_folder)


def test_of_two_runs_of_a_name_the_second_is_refused(digit_folder, tmp_path):
    root = tmp_path / "root"
    first = Started("gan_mnist leaky", root, digit_folder, "--epochs", "1000")
    first.wait_for("metrics.csv")
    second = Started("gan_mnist leaky", root, digit_folder)
    second.end(2)
    assert f"process {first.pid} trains run right now" in second.errors
    first.signal(signal.SIGTERM)
    first.end(143)


def break_a_weight():
    """Makes one a NaN at the very end of the second epoch, after which no loss is looked at before the checkpoint."""
    from utils.run import Run

    step = Run.step

    def broken(self, *optimizers):
        step(self, *optimizers)
        if self.epoch == 2 and self.done == self.count - 1:
            optimizers[0].param_groups[0]["params"][0].data[0] = math.nan

    Run.step = broken


@pytest.mark.parametrize("name", RUNS)
def test_a_weight_that_is_not_a_number_stays_out_of_the_checkpoint(name, whole, digit_folder, tmp_path):
    root = tmp_path / "root"
    run = Started(name, root, digit_folder, before=break_a_weight)
    run.end(2)
    assert re.search(r"finite after iteration \d+|is nan in iteration \d+", run.errors)
    assert len(run.errors.splitlines()) == 1
    said, left = resumed(name, root, digit_folder)
    assert "goes on after 1 epochs" in said
    assert left == whole(name)[0]


def stop_numbers_from_being_finite():
    """Makes every number logged from the sixth step of the second epoch on a NaN."""
    from utils.run import Run

    log = Run.log

    def broken(self, **values):
        log(self, **(dict.fromkeys(values, math.nan) if (self.epoch, self.done) >= (2, 5) else values))

    Run.log = broken


@pytest.mark.parametrize("name", RUNS)
def test_a_loss_that_is_not_a_number_ends_a_run_with_its_iteration(name, digit_folder, tmp_path):
    root = tmp_path / "root"
    run = Started(name, root, digit_folder, before=stop_numbers_from_being_finite)
    run.end(2)
    assert re.search(r"is nan in iteration (31|36|106), in epoch 2; .*checkpoint.pt is from before", run.errors)
    assert len(run.errors.splitlines()) == 1
    assert_all_whole(root)


def test_the_benchmark_makes_its_three_tables(digits, monkeypatch, capsys):
    monkeypatch.setattr("utils.data.load_known", lambda *_: ImageSet(digits.repeat(35, 1, 1, 1), None))  # more than are held out
    monkeypatch.setattr(faults, "EPOCHS_TIMED", 1)
    faults.main(faults.Table(runs=("gan_mnist leaky",), kills=1, mutants=10))
    tables = re.findall(r"\n\|.*\n\| ---.*\n((?:\|.*\n)+)", capsys.readouterr().out)
    killed, spoiled, cost = ([line.strip("| ").split(" | ") for line in rows.splitlines()] for rows in tables)
    assert [(name, count, same) for name, count, *_, same in killed] == [("gan_mnist leaky", "1", "1 of 1")]
    counts = {reader: "10" for reader in READERS} | {"checkpoint, values in it": "1"}
    assert [(file, count, wrong) for file, count, *_, wrong in spoiled] == [(file, count, "0") for file, count in counts.items()]
    assert [row[0] for row in cost] == list(GENERATORS)
    assert all(float(number.rstrip("%")) > 0 for row in cost for number in row[1:])
