import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT

from utils.device import Dropout, pick_device, pick_precision
from utils.shell import UserError


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_zeroes_the_share_p_and_scales_the_rest(p):
    torch.manual_seed(0)
    x = torch.rand(400, 1001, requires_grad=True)  # an odd count: the last random word is used in part
    y = Dropout(p)(x)
    kept = y != 0
    torch.testing.assert_close(y, torch.where(kept, x / (1 - p), 0.0))
    count = x.numel()
    deviation = math.sqrt(p * (1 - p) / count)
    assert abs(kept.float().mean().item() - (1 - p)) < 5 * deviation
    # Neighbours, which share a random word, are as independent as the rest: the share of pairs kept is (1 - p)^2.
    pairs = (kept.flatten()[:-1] & kept.flatten()[1:]).float().mean().item()
    assert abs(pairs - (1 - p) ** 2) < 10 * deviation
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept / (1 - p))


def test_each_place_in_a_random_word_keeps_the_same_share():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(1_000_000)) != 0).view(-1, 4).float().mean(0)
    assert (kept - 0.5).abs().max() < 5 * 0.5 / math.sqrt(250_000)


def test_dropout_at_the_ends_of_its_range_and_in_evaluation():
    x = torch.rand(100)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1e-9)(x), x)
    assert not Dropout(1.0)(x).any()
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_a_seed_fixes_the_masks():
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(torch.ones(1000)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_device_falls_back_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="no device cuda:2, this machine has 2"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "gpu", "xpu", ""])
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no device"):
        pick_device(name)


def test_the_precision_is_what_the_device_multiplies_natively(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False, "amx_bf16": True})
    assert pick_precision("auto", cpu) == ("bf16", "this CPU has amx_bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    assert pick_precision("auto", cpu)[0] == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert pick_precision("auto", cuda)[0] == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert pick_precision("auto", cuda)[0] == "fp16"
    assert pick_precision("fp32", cuda)[0] == "fp32"
    with pytest.raises(UserError, match="no precision named 'bf61'"):
        pick_precision("bf61", cpu)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is left to the system")
def test_memory_between_blocks_in_use_is_handed_back():
    code = """
import torch
from utils.device import give_back_memory, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

keep_freed_memory()
between, large = [], []
for _ in range(20):
    large.append(torch.ones(4_000_000))
    between.append(torch.ones(1000))
full = resident()
del large
kept = resident()
give_back_memory()
print(full - kept, kept - resident())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=True
    )
    at_once, then = map(float, done.stdout.split())
    assert at_once < 16 < 300 < then  # megabytes, of 320 in blocks
