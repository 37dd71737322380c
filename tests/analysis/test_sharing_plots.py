"""The pictures behind docs/when-to-share.md."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from loraplex.analysis.sharing_plots import plot_sharing
from loraplex.simulator.sharing import SharingPoint, SystemPoint

from .test_plots import written


def test_every_picture_is_there_with_its_units(tmp_path: Path) -> None:
    systems = [
        SystemPoint(
            workload=workload,
            system=system,
            microbatch="2048 tokens",
            num_microbatches=10,
            tokens_per_s=1000.0 * speedup,
            bubble_ratio=0.2,
            speedup=speedup,
        )
        for workload in ("gsm8k", "mixed")
        for system, speedup in (("sequential-fixed", 1.0), ("loraplex", 1.5))
    ]
    curves = [
        SharingPoint(
            workload=workload,
            num_stages=num_stages,
            num_adapters=num_adapters,
            global_batch_size=16,
            microbatches_per_batch=4.0,
            apart_tokens_per_s=1000.0,
            shared_tokens_per_s=1300.0,
            speedup=1.3,
            own_gpu_tokens_per_s=None,
            mean_completion_ratio=1.2,
        )
        for workload in ("mixed", "even")
        for num_stages in (2, 4, 8)
        for num_adapters in (2, 4)
    ]
    plot_sharing(
        systems=pd.DataFrame([asdict(point) for point in systems]),
        curves=pd.DataFrame([asdict(point) for point in curves]),
        folder=tmp_path,
    )
    labels = {
        "sharing-systems": "throughput over sequential-fixed [x]",
        "sharing-bubbles": "bubble ratio [share of all stages' time]",
        "sharing-batch-mixed": "throughput together / apart [x]",
        "sharing-batch-even": "samples in a global batch of each adapter",
        "sharing-adapters-speedup": "adapters, four stages, global batches of 16",
        "sharing-adapters-mean_completion_ratio": "mean time until done, together / apart [x]",
    }
    assert {path.stem for path in tmp_path.iterdir()} == set(labels)
    assert all(label in written(tmp_path / name) for name, label in labels.items())
