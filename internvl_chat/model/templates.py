"""Chat templates by the name that a user gives; this file does not travel in checkpoints."""

from __future__ import annotations

from internvl_chat.errors import ConfigError

from .conversation import Template, get_conv_template


def find_template(name: str) -> Template:
    """Look a template up.

    Raises:
        ConfigError: no template has this name; the message offers the closest ones.
    """
    try:
        return get_conv_template(name)
    except ValueError as err:
        raise ConfigError(str(err), where="--conv_style") from err
