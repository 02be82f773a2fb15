"""Disks and /dev/shm that are full: said in words that name the place, and all is well once there is room again."""

from pathlib import Path

from fault_matrix import seen
from small_disks import run_on_a_small_disk


def test_a_full_disk_under_the_servers_log(tmp_path):
    for name, said in run_on_a_small_disk(tmp_path, "3m", "state", tmp_path).items():
        seen(name, said)


def test_a_full_shared_memory():
    for name, said in run_on_a_small_disk("/dev/shm", "16m", "shared_memory", "/dev/shm").items():
        seen(name, said)


def test_a_full_disk_under_what_a_learner_writes(tmp_path):
    (tmp_path / "disk").mkdir()
    said = run_on_a_small_disk(tmp_path / "disk", "4m", "written", tmp_path / "disk")
    assert said["figure full"].count("\n") == said["workspace full"].count("\n") == 1
    for name, words in said.items():
        seen(name, words)


def test_a_full_disk_under_the_build(tmp_path):
    for name, said in run_on_a_small_disk(tmp_path, "4m", "build", Path(tmp_path)).items():
        seen(name, said)
