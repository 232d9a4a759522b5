"""``python -m torch_forwardfix``."""

try:
    from .cli import main
except ModuleNotFoundError as error:
    raise SystemExit(f"torch-forwardfix: {error.name} is missing: pip install {error.name}") from None

raise SystemExit(main())
