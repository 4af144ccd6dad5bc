"""The guide's tree of the nine datasets of InternVL-Chat-V1-2: what lies where and comes whence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DOWNLOADS: Final = "downloads"
"""Folder below the root that the printed commands download to."""


@dataclass(frozen=True)
class Download:
    """A file to be fetched."""

    url: str
    repository: str | None = None
    """On the Hub, with what is fetched of it."""
    file_pattern: str | None = None
    is_dataset: bool = False

    def commands(self, folder: str) -> list[str]:
        """Command lines that fetch it into a folder, or the address of what needs a browser."""
        if self.repository is None:
            browser = "drive.google.com" in self.url
            fetch = f"wget -c -P {folder} '{self.url}'"
            return [f"in a browser: {self.url}" if browser else fetch]
        assert self.file_pattern is not None
        kind = ["--repo-type", "dataset"] if self.is_dataset else []
        named = "*" not in self.file_pattern and "[" not in self.file_pattern
        file = f"'{self.file_pattern}'" if " " in self.file_pattern else self.file_pattern
        what = [file] if named else ["--include", f"'{self.file_pattern}'"]
        target = ["--local-dir", folder]
        new = ["hf", "download", *kind, self.repository, *what, *target]
        as_in_guide = ["--resume-download", "--local-dir-use-symlinks", "False"]
        old = ["huggingface-cli", "download", *as_in_guide, *new[2:]]
        return [" ".join(new), f"{' '.join(old)}  # the guide's, huggingface_hub < 1"]


@dataclass(frozen=True)
class ImageFolders:
    """Images of one source."""

    source: str
    folders: tuple[str, ...]
    """Below ``data/``."""
    downloads: tuple[Download, ...]
    unpack: str
    """What to do with the download; ``{down}`` and ``{data}`` are folders."""

    def downloaded_to(self, root: str) -> str:
        """A folder of its own: several archives are called ``images.zip``."""
        return f"{root}/{DOWNLOADS}/{self.source.lower().replace(' ', '-').replace('+', '-plus')}"


@dataclass(frozen=True)
class GuideDataset:
    """One of the nine."""

    name: str
    root: str
    """Below ``data/``; empty where images of several sources are named."""
    length: int


ANNOTATIONS: Final = Download(
    "https://huggingface.co/OpenGVLab/InternVL/resolve/main/playground.zip",
    "OpenGVLab/InternVL",
    "playground.zip",
)

DATASETS: Final = (
    GuideDataset("sharegpt4v_instruct_gpt4-vision_cap100k", "", 102025),
    GuideDataset("llava_instruct_150k_zh", "coco", 157712),
    GuideDataset("sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k", "", 665058),
    GuideDataset("dvqa_train_200k", "dvqa", 200000),
    GuideDataset("chartqa_train_18k", "chartqa", 18317),
    GuideDataset("ai2d_train_12k", "ai2d", 12413),
    GuideDataset("docvqa_train_10k", "docvqa", 10211),
    GuideDataset("geoqa+", "geoqa+", 72318),
    GuideDataset("synthdog_en", "synthdog-en", 29765),
)

_DRIVE: Final = "https://drive.google.com"
_HUB: Final = "https://huggingface.co"

FOLDERS: Final = (
    ImageFolders(
        "AI2D",
        ("ai2d/abc_images", "ai2d/images"),
        (Download(f"{_DRIVE}/file/d/1dqqa3MnrxMXaU_K9JA6C83je32ibwdOY/view?usp=sharing"),),
        "unpack into {data}/ai2d",
    ),
    ImageFolders(
        "ChartQA",
        ("chartqa/test", "chartqa/train", "chartqa/val"),
        (
            Download(
                f"{_HUB}/datasets/ahmed-masry/ChartQA/resolve/main/ChartQA%20Dataset.zip",
                "ahmed-masry/ChartQA",
                "ChartQA Dataset.zip",
                is_dataset=True,
            ),
        ),
        "unpack, and move what is in 'ChartQA Dataset' to {data}/chartqa",
    ),
    ImageFolders(
        "COCO",
        ("coco/train2017",),
        (Download("http://images.cocodataset.org/zips/train2017.zip"),),
        "unzip -n {down}/train2017.zip -d {data}/coco",
    ),
    ImageFolders(
        "DocVQA",
        ("docvqa/test", "docvqa/train", "docvqa/val"),
        tuple(
            Download(f"https://datasets.cvc.uab.es/rrc/DocVQA/{half}.tar.gz")
            for half in ("train", "val", "test")
        ),
        "unpack each into {data}/docvqa",
    ),
    ImageFolders(
        "DVQA",
        ("dvqa/images",),
        (Download(f"{_DRIVE}/file/d/1iKH2lTi1-QxtNUVRxTUWFvUvRHq6HAsZ/view"),),
        "unpack into {data}/dvqa",
    ),
    ImageFolders(
        "GQA",
        ("gqa/images",),
        (Download("https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"),),
        "unzip -n {down}/images.zip -d {data}/gqa",
    ),
    ImageFolders(
        "LLaVA-Pretrain",
        ("llava/llava_pretrain/images",),
        (
            Download(
                f"{_HUB}/datasets/liuhaotian/LLaVA-Pretrain/resolve/main/images.zip",
                "liuhaotian/LLaVA-Pretrain",
                "images.zip",
                is_dataset=True,
            ),
        ),
        "unzip -n {down}/images.zip -d {data}/llava/llava_pretrain/images",
    ),
    ImageFolders(
        "OCR-VQA",
        ("ocr_vqa/images",),
        (Download(f"{_DRIVE}/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_?usp=sharing"),),
        "run the script, images into {data}/ocr_vqa/images, then data layout --convert",
    ),
    ImageFolders(
        "SAM",
        ("sam/images",),
        (Download(f"{_DRIVE}/file/d/1dKumdOKSXtV7lIXdrG7jsIK_z2vZv2gs/view?usp=drive_link"),),
        "unpack into {data}/sam",
    ),
    ImageFolders(
        "TextVQA",
        ("textvqa/train_images",),
        (Download("https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip"),),
        "unzip -n {down}/train_val_images.zip -d {data}/textvqa",
    ),
    ImageFolders(
        "SynthDoG-EN",
        ("synthdog-en/images",),
        (
            Download(
                f"{_HUB}/OpenGVLab/InternVL/resolve/main/synthdog-en-images.zip",
                "OpenGVLab/InternVL",
                "synthdog-en-images.zip",
            ),
            Download(
                f"{_HUB}/datasets/naver-clova-ix/synthdog-en",
                "naver-clova-ix/synthdog-en",
                "data/train-0000[0-4]-of-00084-*.parquet",
                is_dataset=True,
            ),
        ),
        "unzip -n {down}/synthdog-en-images.zip -d {data}/synthdog-en; or, with the Parquet files "
        "in its place, data layout --convert",
    ),
    ImageFolders(
        "Visual Genome",
        ("vg/VG_100K", "vg/VG_100K_2"),
        (
            Download("https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip"),
            Download("https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip"),
        ),
        "unpack both into {data}/vg",
    ),
    ImageFolders(
        "WebData",
        ("share_textvqa/images", "web-celebrity/images", "web-landmark/images", "wikiart/images"),
        (Download(f"{_DRIVE}/drive/folders/1tCUQ-sq6vdshZVkF0ZeF3K4eztkXJgax?usp=sharing"),),
        "unpack each into its folder below {data}; only for academic usage",
    ),
    ImageFolders(
        "GeoQA+",
        ("geoqa+/images",),
        (
            Download(
                f"{_HUB}/OpenGVLab/InternVL/resolve/main/geoqa%2B_images.zip",
                "OpenGVLab/InternVL",
                "geoqa+_images.zip",
            ),
        ),
        "unzip -n {down}/geoqa+_images.zip -d {data}/geoqa+",
    ),
)

UNPACKED_NAMES: Final = {
    "train2017": "coco/train2017",
    "ChartQA Dataset/train": "chartqa/train",
    "ChartQA Dataset/val": "chartqa/val",
    "ChartQA Dataset/test": "chartqa/test",
    "VG_100K": "vg/VG_100K",
    "VG_100K_2": "vg/VG_100K_2",
    "abc_images": "ai2d/abc_images",
    "train_images": "textvqa/train_images",
}
"""Names that archives unpack to, whatever folder they were unpacked in -> place below ``data/``."""
