"""What a training needs and how fast it is, by arithmetic."""

from __future__ import annotations

import pytest

from train.sizes import speed


def test_flops_of_llama3_8b_agree_with_the_published_arithmetic() -> None:
    # 8.03 B weights, 0.525 B of them the input embedding; 4,096 tokens of one document: a token
    # attends to 2,048 on average.
    llama = {"num_attention_heads": 32, "hidden_size": 4096, "num_hidden_layers": 32}
    flops = speed.flops_per_token(8_030_000_000 - 525_000_000, llama, 2048)
    assert flops == pytest.approx(45.0e9 + 3.2e9, rel=0.01)
    assert speed.mfu(5_800, flops, 1, 989.5e12) == pytest.approx(0.28, abs=0.01)


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA GB200", 2500),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_a_devices_peak_is_that_of_its_whole_name(device: str, teraflops: float) -> None:
    assert speed.peak_flops(device) == teraflops * 1e12


@pytest.mark.parametrize("device", ["Tesla T4", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A1000"])
def test_a_device_that_is_not_known_has_no_peak(device: str) -> None:
    assert speed.peak_flops(device) is None
