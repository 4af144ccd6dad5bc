"""The card of the tiny model: what it says for which figures."""

import json
from pathlib import Path

from examples.tiny_model.finish import weak_skills, write_card


def run_of(skills: dict[str, float]) -> dict[str, object]:
    return {
        "seed": 3,
        "records": 100,
        "vision_steps": 7,
        "language_steps": 8,
        "parameters": {"total": 5_500_000},
        "heldout": {"groups": {"color": 0.987, "pairs": 0.5}, "skills": skills},
    }


def test_weak_skills_are_named() -> None:
    assert weak_skills({"color": 0.99, "relation": 0.56}) == "Weak skills: `relation` 56%.\n\n"
    assert weak_skills({"color": 0.7}) == ""


def test_the_card_tells_figures_beside_targets(tmp_path: Path) -> None:
    write_card(tmp_path, run_of({"color": 0.987, "pair_which": 0.5}))
    card = (tmp_path / "README.md").read_text()
    assert "| color | 98.7% | 95% |" in card
    assert "| pairs | 50.0% |  |" in card
    assert "`pair_which` 50%" in card
    assert "(7 steps of 32 images)" in card
    assert "(8 steps of 16 records)" in card
    assert "5.5 M weights" in card


def test_the_shipped_card_is_the_one_of_its_run(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "pretrained/internvl-chat-tiny"
    write_card(tmp_path, json.loads((shipped / "run.json").read_text(encoding="utf-8")))
    for name in ("README.md", "run.json"):
        assert (tmp_path / name).read_text("utf-8") == (shipped / name).read_text("utf-8")
