"""``internvl-chat serve``: an OpenAI-style endpoint over HTTP.

``server`` -> ``app`` -> ``engine``. Without HTTP or a model: ``protocol`` (what is asked and what
goes back), ``answer_text`` (tokens -> certain text), ``sampling``. The engine knows no HTTP.
"""
