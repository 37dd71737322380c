"""A tensor of the device, on the host."""

import pytest
import torch

from loraplex.engine.host_copy import HostCopy


@pytest.mark.parametrize("value", [True, False])
def test_it_is_what_it_was_when_it_was_asked_for(value: bool) -> None:
    flag = torch.tensor(value)
    known = HostCopy(flag)
    flag.fill_(not value)
    assert bool(known.get()) is value


@pytest.mark.gpu
@pytest.mark.parametrize("value", [True, False])
def test_the_host_does_not_wait_for_it_before_it_wants_to_know(value: bool) -> None:
    flag = torch.full((), value, device="cuda")
    # Loading a kernel may wait for all that runs on the GPU.
    HostCopy(flag & True).get()
    torch.cuda.synchronize()
    # 0.3 s
    torch.cuda._sleep(6 * 10**8)  # type: ignore[no-untyped-call]
    slept = torch.cuda.Event()  # type: ignore[no-untyped-call]
    slept.record()
    known = HostCopy(flag & True)
    assert not slept.query()  # type: ignore[no-untyped-call]
    assert bool(known.get()) is value
    assert slept.query()  # type: ignore[no-untyped-call]
