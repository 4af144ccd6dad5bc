"""The example images of the demo page are the program's."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from examples.demo_images import write
from internvl_chat.web.examples import IMAGES


def test_the_shipped_images_are_the_ones_that_are_drawn(tmp_path: Path) -> None:
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in IMAGES.iterdir()}
    for path in tmp_path.iterdir():
        drawn, shipped = (Image.open(one).convert("RGB") for one in (path, IMAGES / path.name))
        # Another Pillow may round an edge or a letter otherwise.
        difference = ImageChops.difference(drawn, shipped).convert("L")
        assert np.mean(np.asarray(difference) > 40) < 0.01
