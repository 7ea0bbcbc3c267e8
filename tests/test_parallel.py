"""Several processes train as one would: two of them, over gloo on this machine's loopback."""

import copy
import os
import re
import signal
import sys
import time
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from runs import EPOCHS, RUNS, Started, assert_all_whole, command, free_port, result

from gan_mnist import Config, make_generator
from utils import data
from utils.known import ImageSet
from utils.parallel import Replica, Team
from utils.shell import UserError

STEPS = 20


def exact():
    """Makes a run of several processes what it is with one, but for rounding and the sharing itself: in float64, without dropout, batch
    norm by its running means, z and other noise drawn for the whole batch. Leaves in a file the first gradients and the weights after
    20 steps."""
    from utils.device import Dropout
    from utils.parallel import Team
    from utils.run import Run

    torch.set_default_dtype(torch.float64)
    Dropout.forward = lambda self, x: x
    torch.nn.modules.batchnorm._BatchNorm.train = lambda self, mode=True: self
    rand, randn, randint = torch.rand, torch.randn, torch.randint

    def rand_of_share(*shape, **kind):
        batch = int(shape[0] == 3)  # an augmentation's three numbers for colours come before it
        whole = rand(*shape[:batch], shape[batch] * team.size, *shape[batch + 1 :], **kind)
        return whole.unflatten(batch, (-1, team.size)).select(batch + 1, team.rank)

    def randint_of_share(*limits, **kind):
        *limits, (count, *shape) = limits
        if len(limits) == 1:  # a class in z, which is drawn for the whole batch below
            return randint(*limits, (count, *shape), **kind)
        return randint(*limits, (count * team.size, *shape), **kind)[team.rank :: team.size]

    torch.rand, torch.randint = rand_of_share, randint_of_share
    torch.randn = lambda count, *shape, **kind: randn(count * team.size, *shape, **kind)[team.rank :: team.size]
    torch.randn_like = lambda like: torch.randn(*like.shape)
    team, place, track, steps, step = Team(), Run.place, Run.track, Run.steps, Run.step
    gradients, weights = [], []

    def placed(self, *modules):
        for module in modules:
            if hasattr(module, "latent"):
                module.latent = partial(of_the_whole_batch, module.latent, team)
            module.register_forward_pre_hook(lambda _, inputs: tuple(value.double() for value in inputs))
            for part in module.modules():
                part.training = not isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
        return place(self, *modules)

    def tracked(self, **parts):
        track(self, **parts)
        torch.manual_seed(1)

    def stepped(self, *optimizers):
        moved = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
        if self.iteration == 0:
            gradients.extend(weight.grad.clone() for weight in moved)
        step(self, *optimizers)
        if self.iteration == STEPS - 1:
            weights.extend(weight.detach().clone() for weight in moved)
            torch.save((gradients, weights), Path(self.config.root).with_suffix(f".{team.rank}"))

    Run.place, Run.track, Run.step = placed, tracked, stepped
    Run.steps = lambda *arguments: map(in_float64, steps(*arguments))


def in_float64(batch):
    return batch.double() if isinstance(batch, torch.Tensor) else tuple(part.double() for part in batch)


def of_the_whole_batch(latent, team, count, device, rng=None):
    return latent(count, device, rng) if rng else latent(count * team.size, device)[team.rank :: team.size]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name, digit_folder, tmp_path):
    alone = Started(name, tmp_path / "alone", digit_folder, "--epochs", "1", before=exact)
    team = start_team(name, tmp_path / "team", digit_folder, 2, "--epochs", "1", before=exact)
    for process in (alone, *team):
        process.end(0)
    gradients, weights = torch.load(tmp_path / "alone.0")
    for rank in range(2):
        their_gradients, their_weights = torch.load(tmp_path / f"team.{rank}")
        assert len(gradients) == len(weights) > 0
        for a, b in zip(their_gradients, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)
        for a, b in zip(their_weights, weights, strict=True):  # one that ends next to zero has no more digits than its start and its steps
            torch.testing.assert_close(a, b, rtol=1e-6, atol=max(1e-12, 1e-6 * b.abs().mean().item()))
    (row,), (other,) = (result(tmp_path / kind)["rows"] for kind in ("alone", "team"))
    assert row.keys() == other.keys()
    for column in row:
        assert float(other[column]) == pytest.approx(float(row[column]), rel=1e-5, abs=1e-6), column


def labelled(folder):
    """Makes the pictures of a folder a known set, with labels."""
    images = data.load(str(folder), 28, 1).images
    data.load = lambda *_, **__: ImageSet(images, torch.arange(len(images)) % 10)


def test_the_error_without_labels_is_measured_by_the_first_process(digit_folder, tmp_path):
    root, before = tmp_path / "root", partial(labelled, digit_folder)
    for process in start_team("infogan_mnist", root, digit_folder, 2, "--data", "mnist", "--epochs", "1", before=before):
        process.end(0)
    (row,) = result(root)["rows"]
    assert 0 < float(row["error"]) < 1


def test_a_replica_is_like_its_network(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo")
    network = make_generator(Config(model="batchnorm"))
    replica = Replica(network)
    assert replica.pixels == network.pixels
    assert list(replica.state_dict()) == list(network.state_dict())
    assert type(copy.deepcopy(replica)) is type(network)
    torch.distributed.destroy_process_group()


def test_what_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="WORLD_SIZE 3, but no RANK"):
        Team()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="which 3 processes can't share: give --device cuda"):
        Team().device("cuda:0")
    with pytest.raises(UserError, match="batch_size is 100, which 3 processes can't share evenly"):
        Team().share(100)


@pytest.mark.parametrize(("name", "killed", "then"), list(zip(RUNS, cycle((0, 1)), cycle((1, 2, 1, 2, 4)))))
def test_a_killed_process_ends_the_run_which_goes_on_with_any_number(name, killed, then, digit_folder, tmp_path):
    root = tmp_path / "root"
    team = start_team(name, root, digit_folder, 2)
    team[0].wait_for("checkpoint.pt")
    team[killed].signal(signal.SIGKILL)
    team[killed].end(137)
    other = team[1 - killed]
    other.end(2, seconds=30)
    assert "another process of this run has ended or is out of reach" in other.errors
    assert len(other.errors.splitlines()) == 1
    assert_all_whole(root)

    team = start_team(name, root, digit_folder, then, "--resume")
    for process in team:
        process.end(0)
    assert re.search(r"goes on after \d", team[0].output)
    assert len(result(root)["rows"]) == EPOCHS
    assert_all_whole(root)


def start_team(name, root, data, size, *more, before=None):
    port = free_port()
    return [Started(name, root, data, *more, before=before, team=(rank, size, port)) for rank in range(size)]


def test_processes_that_would_not_train_the_same_are_refused(digit_folder, tmp_path):
    port = free_port()
    rates = ("0.1", "0.2")
    team = [
        Started("gan_mnist leaky", tmp_path / "root", digit_folder, "--learning-rate", rate, team=(rank, 2, port))
        for rank, rate in enumerate(rates)
    ]
    for process in team:
        process.end(2)
    assert "process 1 of 2 has other constants than process 0" in team[1].errors


@pytest.fixture
def torchrun(process, digit_folder, tmp_path):
    """Starts a run by torchrun, and waits for its first checkpoint: the jobs, one for each list of torchrun's options."""

    def start(*options, more=("--epochs", "1000")):
        script, *arguments = command("gan_mnist leaky", tmp_path / "root", digit_folder, *more)
        threads = os.environ | {"OMP_NUM_THREADS": "1"}
        torchrun = Path(sys.executable).with_name("torchrun")
        jobs = [process(torchrun, *each, PROJECT / script, *arguments, env=threads) for each in options]
        until = time.monotonic() + 60
        while not (tmp_path / "root" / "outputs" / "run" / "checkpoint.pt").exists():
            assert time.monotonic() < until
            assert all(job.poll() is None for job in jobs), [job.communicate() for job in jobs]
            time.sleep(0.1)
        return jobs

    return start


def test_torchrun_that_is_asked_to_stop_saves_and_goes_on(torchrun, tmp_path):
    (job,) = torchrun(["--standalone", "--nproc_per_node=2"])
    job.send_signal(signal.SIGTERM)
    output, errors = job.communicate(timeout=60)
    assert "stopped, saved:" in output, errors
    epochs = len(result(tmp_path / "root")["rows"])
    (job,) = torchrun(["--standalone", "--nproc_per_node=2"], more=("--epochs", str(epochs + 1), "--resume"))
    output, errors = job.communicate(timeout=60)
    assert job.returncode == 0, errors
    assert f"goes on after {epochs} epochs" in output


def test_a_process_killed_on_one_machine_ends_the_job_on_all(torchrun, tmp_path):
    each = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    jobs = torchrun([*each, "--node_rank=0"], [*each, "--node_rank=1"])
    os.kill(int((tmp_path / "root" / "outputs" / "run" / ".process").read_text()), signal.SIGKILL)
    until = time.monotonic() + 30
    said = [job.communicate(timeout=until - time.monotonic()) for job in jobs]
    assert all(job.returncode for job in jobs)
    assert "another process of this run has ended or is out of reach" in said[1][1]
    assert_all_whole(tmp_path / "root")
