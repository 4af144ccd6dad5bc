"""``internvl-chat serve``: an OpenAI-style endpoint over HTTP.

``cli`` -> ``server`` -> ``app`` -> ``engine``. Pure, without HTTP or a model: ``request`` and
``messages`` (what was asked), ``answer_text`` (tokens -> certain text), ``sampling``, ``replies``
(the JSON that goes back).
"""
