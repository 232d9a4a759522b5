"""``python -m torch_forwardfix``."""

_REQUIRED = ("importlib_metadata", "packaging", "zipp")

try:
    from .cli import main

    status = main()
except ModuleNotFoundError as error:
    if error.name not in _REQUIRED:
        raise
    raise SystemExit(f"torch-forwardfix: {error.name} is missing: pip install {error.name}") from None

raise SystemExit(status)
