"""Ctrl-C in a command whose main thread waits for a disk: it takes no signal and does not move."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

_STALLED = """
import ctypes, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it aside
from learnkit.cli.app import main
from learnkit.data import image
def stall(*args, **how):
    lock, wait = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    wait(lock)
    signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT}})  # as the system does in such a wait
    print("reading", flush=True)
    wait(lock)
setattr({where}, {name!r}, stall)
main(sys.argv[1:])
"""


def interrupted(where, name, *arguments):
    """(exit code, standard error) of a command that is sent SIGINT when it reads."""
    command = [sys.executable, "-c", _STALLED.format(where=where, name=name), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # an idle thread of BLAS or OpenMP would take a signal that the main thread blocks; one that
    # waits for a disk does not block it
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, text=True, env=alone, **pipes) as process:
        try:
            assert any(line == "reading\n" for line in process.stdout), process.stderr.read()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, errors


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((32, 32, 3), 8 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pthread_mutex_lock")
def test_a_training_whose_read_never_returns_is_ended(folder, tmp_path):
    options = ["--no-pretrained", "--arch", "resnet18", "--size", "32", "--epochs", "1"]
    out = tmp_path / "model"
    code, errors = interrupted(
        "image.Image", "open", "train", str(folder), "--out", str(out), *options
    )
    assert code == 130
    assert errors.splitlines()[-1] == (
        "learnkit: interrupted; a file is left that the disk or network does not answer for"
    )
    assert not out.exists()
