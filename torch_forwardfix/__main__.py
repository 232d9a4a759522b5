"""``python -m torch_forwardfix``."""

from .cli import main

raise SystemExit(main())
