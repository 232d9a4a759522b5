"""One file per bug that is known and stays. Each holds its story, its range and its reproduction, as ``BUG``."""
