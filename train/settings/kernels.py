"""Kernels that a training takes from the hub, fetched once before it starts: attention where no
package brings it, and the layers of `model_init.use_kernels`.

    python -m train.settings.kernels '{"attn_implementation": "flash_attention_2"}'

is a process of its own, because choosing a build needs torch. The training processes then find them
in the hub's cache and ask nobody.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.pretrained.hub import offline_variables

PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
"""Attention implementation -> the module of the package that brings it; each is on the hub too."""

LAYERS = (
    *("RMSNorm", "SwiGLUMLP", "GeGLUMLP", "SiLU", "GeLU", "GeluTanh"),
    *("Linear", "rotary_pos_emb", "ForCausalLMLoss"),
)
"""Names of what transformers replaces in decoders with `use_kernels`."""


def of_the_hub(model_init: Mapping[str, Any]) -> dict[str, Any]:
    """What of `model_init` needs kernels of the hub: `attn_implementation` without a package of its
    own here, and `use_kernels`."""
    attention = str(model_init.get("attn_implementation") or "")
    needed: dict[str, Any] = {}
    if "/" in attention or (attention in PACKAGES and not _found(PACKAGES[attention])):
        needed["attn_implementation"] = attention
    if model_init.get("use_kernels"):
        needed["use_kernels"] = True
    return needed


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def fetch(model_init: Mapping[str, Any]) -> None:
    """Bring the hub's kernels that `model_init` needs into the hub's cache. Raises UserError where
    there is none for this machine, or no network."""
    needed = of_the_hub(model_init)
    if not needed:
        return
    command = [sys.executable, "-m", __name__, json.dumps(needed)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **offline_variables()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        *_, last = ["no output", *done.stderr.strip().splitlines()]
        said = ", ".join(f"{key}: {value}" for key, value in needed.items())
        raise UserError(
            f"train.model_init ({said}) needs kernels of the hub that cannot be had ({last}); use "
            "attn_implementation: sdpa and use_kernels: false, or fetch them where there is a "
            "network, with the same HF_HOME."
        )


def repositories(needed: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(repository, {"version" or "revision": ...}) of each kernel that is needed, as transformers
    will ask for it."""
    from transformers.integrations import hub_kernels
    from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK

    found: list[tuple[str, dict[str, Any]]] = []
    if attention := needed.get("attn_implementation"):
        name = FLASH_ATTN_KERNEL_FALLBACK.get(attention, attention).partition(":")[0]
        repository, _, revision = name.partition("@")
        version = {"version": hub_kernels.get_attn_kernel_version(repository)}
        found.append((repository, {"revision": revision} if revision else version))
    if needed.get("use_kernels"):
        from kernels import LayerRepository

        from core.serving.devices import rocm

        mapping, device = (
            hub_kernels.get_kernel_mapping_transformers(),
            "rocm" if rocm() else "cuda",
        )
        for layer in LAYERS:
            by_mode = mapping.get(layer, {}).get(device, {})
            modes = by_mode.items() if isinstance(by_mode, dict) else [("TRAINING", by_mode)]
            for mode, source in modes:
                if isinstance(source, LayerRepository) and "TRAINING" in str(mode):
                    version = {"version": source._version, "revision": source._revision}
                    said = {key: value for key, value in version.items() if value is not None}
                    found.append((source._repo_id, said))
    return [each for at, each in enumerate(found) if each not in found[:at]]


def main(needed: Mapping[str, Any]) -> None:
    """Fetch them all."""
    from kernels import install_kernel

    for repository, at in repositories(needed):
        install_kernel(repository, **at)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
