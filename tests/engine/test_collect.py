"""What workers wrote comes together in worker 0's folder, whether it is theirs too or not."""

import threading
from pathlib import Path

import pytest

from loraplex.engine import collect as collect_module
from loraplex.engine.collect import check_shared, collect
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.planner.errors import JobError


def run(folders: list[Path]) -> None:
    """One thread a worker; worker w writes `part-w` of 10 w bytes and one in a subfolder."""
    board = Switchboard(len(folders), timeout_s=20)

    def work(worker: int, folder: Path) -> None:
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        names = [f"part-{worker}", f"sub/{worker}"]
        (folder / names[0]).write_bytes(bytes([worker]) * 10 * worker)
        (folder / names[1]).write_text(f"of worker {worker}")
        collect(RendezvousTransport(board, worker), folder, names, num_workers=len(folders))

    threads = [threading.Thread(target=work, args=given) for given in enumerate(folders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_folders_of_their_own_all_files_come_and_no_trace_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces so small that files take several.
    monkeypatch.setattr(collect_module, "_PIECE_BYTES", 7)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "part-2").write_bytes(b"of an earlier run")
    run([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
    assert content(tmp_path / "0") == {
        "part-0": b"",
        "part-1": b"\1" * 10,
        "part-2": b"\2" * 20,
        "sub/0": b"of worker 0",
        "sub/1": b"of worker 1",
        "sub/2": b"of worker 2",
    }
    assert content(tmp_path / "1") == {"part-1": b"\1" * 10, "sub/1": b"of worker 1"}


def test_from_one_folder_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def note(size: int) -> list[int]:
        sizes.append(size)
        return []

    monkeypatch.setattr(collect_module, "_pieces", note)
    run([tmp_path] * 3)
    assert sizes == []
    assert set(content(tmp_path)) == {"part-0", "part-1", "part-2", "sub/0", "sub/1", "sub/2"}


@pytest.mark.parametrize(("names", "seen"), [(("0", "0", "0"), [True] * 3), (("0", "0", "2"), [True, True, False])])
def test_a_worker_that_does_not_see_the_first_ones_folder_says_so(
    tmp_path: Path, names: tuple[str, ...], seen: list[bool]
) -> None:
    board = Switchboard(3, timeout_s=20)
    found: dict[int, BaseException | None] = {}

    def work(worker: int) -> None:
        (tmp_path / names[worker]).mkdir(exist_ok=True)
        try:
            check_shared(RendezvousTransport(board, worker), tmp_path / names[worker], num_workers=3)
            found[worker] = None
        except JobError as error:
            found[worker] = error

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [not isinstance(found[worker], JobError) for worker in range(3)] == seen
    assert list(tmp_path.rglob(".shared-*")) == []
    if not all(seen):
        assert "give --output a folder that all machines see, or leave out --checkpoint-every" in str(found[2])
