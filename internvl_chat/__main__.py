"""``python -m internvl_chat VERB`` is the ``internvl-chat`` command."""

import sys

from internvl_chat.cli import main

sys.exit(main())
